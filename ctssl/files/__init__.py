"""Files: CSV and JSON from untrusted sources, safe file names, atomic writing.

Import from the modules: `text` (read CSV and JSON, explain every fault), `names` (file names from untrusted
text), `atomic` (write a file completely or not at all; hash a file). Nothing here loads torch.
"""
