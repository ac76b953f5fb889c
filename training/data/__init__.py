"""The data of a pretraining: which scans make a corpus, the splits, and the cache of prepared scans."""
