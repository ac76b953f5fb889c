"""The paper's Swin (arXiv 2405.08657), SMIT, with the paper's settings; for GPUs.

`torchrun --nproc-per-node 4 -m training.pretrain paper/swin_wild_smit`: batch 32, 500 epochs of 10,412 scans.
A test builds this run and takes steps, but it was never run to the end: it needs four large GPUs, and most of
the paper's scans are private. Cubes of 32 voxels are hidden, the size of a token of the deepest map that is
distilled here; the released code hides 16 and distils the map before the last merging.
"""

from training.recipe import PAPER, Run

run = Run(
    "swin-wild-smit-paper",
    task="smit",
    task_args=dict(block=32, hidden=2048, bottleneck=256, out=8192),
    **PAPER,
)
