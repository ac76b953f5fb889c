"""What the trainings read: which scans make a corpus, the sarcoma split, and the cache of prepared scans."""
