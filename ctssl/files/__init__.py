"""Files: CSV and JSON from untrusted sources, safe file names, weights, atomic writing.

Import from the modules: `text` (read CSV and JSON, explain every fault), `names` (file names from untrusted
text), `atomic` (write a file completely or not at all; hash a file), `weights` (read and write safetensors),
`walk` (search a folder), `running` (stop by a signal, lock a folder), `versions` (what a report was made with).
Only `weights` loads torch, and only to read or write tensors.
"""
