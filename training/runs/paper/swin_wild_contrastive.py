"""The paper's Swin (arXiv 2405.08657), contrastive, with the paper's settings; for GPUs.

`torchrun --nproc-per-node 4 -m training.pretrain paper/swin_wild_contrastive`: batch 32, 500 epochs of 10,412
scans. A test builds this run and takes steps, but it was never run to the end: it needs four large GPUs, and
most of the paper's scans are private.
"""

from training.recipe import PAPER, Run

run = Run("swin-wild-contrastive-paper", task="contrastive", task_args=dict(hidden=2048, out=128), **PAPER)
