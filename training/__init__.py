import os

# numpy's threads would spin in the loader's workers and slow the training down
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
