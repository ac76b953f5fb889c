"""The data of a pretraining.

Which scans: `corpora` (our own and their splits), `manifest` (a CSV or a folder), `nsclc` (the paper's public data), `seen`
(the record of what a model saw). Prepared once: `cache`. Crops from them: `loader` (on the processor) or `resident` (in the
memory of a GPU), `views` (crops to views), `lesions` (synthetic ones), with `axes` and `draws` (matrices and random numbers
for whole batches).
"""
