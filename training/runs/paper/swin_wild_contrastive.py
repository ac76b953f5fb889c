"""The paper's Swin (arXiv 2405.08657), contrastive, with the paper's settings; for GPUs.

`torchrun --nproc-per-node 4 -m training.pretrain paper/swin_wild_contrastive`: batch 32, 500 epochs of 10,412
scans. This run builds and takes steps (a test), but nobody has run it to its end: it is meant for four large
GPUs, and most of the paper's scans are private.
"""

from training.run import PAPER, Run

run = Run("swin-wild-contrastive-paper", task="contrastive", task_args=dict(hidden=2048, out=128), **PAPER)
