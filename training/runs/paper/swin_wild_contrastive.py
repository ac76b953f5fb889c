"""The paper's Swin (arXiv 2405.08657), contrastive, with the paper's settings; for GPUs.

`torchrun --nproc-per-node 4 -m training.pretrain paper/swin_wild_contrastive`: batch 32, 500 epochs of 10,412 scans. This run
builds and takes steps (a test), but nobody has run it to its end: it is meant for four large GPUs, and most of the paper's
scans are private.
"""

from training.run import Run

run = Run(
    name="swin-wild-contrastive-paper",
    encoder="swin",
    encoder_args=dict(width=48, depths=(2, 2, 8, 2), heads=(4, 4, 8, 16), window=4, patch=2, drop_path=0.1),
    task="contrastive",
    task_args=dict(hidden=2048, out=128),
    corpus="wild",
    crop=128,
    batch=8,
    steps=162_700,
    bf16=True,
    checkpointing=True,
    workers=8,
)
