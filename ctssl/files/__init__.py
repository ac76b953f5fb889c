"""Files: text that others wrote, names made from it, and files that are whole or not there.

Import from the modules: `text` (CSV and JSON with every fault in words), `names` (file names from other
people's words), `atomic` (write a file completely or not at all; hash a file). Nothing here loads torch.
"""
