"""The small ViT, contrastive, self (the training side of the sarcoma scans).

`python -m training.pretrain vit_self_contrastive`, then `python -m training.release.encoder
vit_self_contrastive`.
"""

from training.recipe import CONTRASTIVE, SMALL, STEPS, Run

run = Run(
    "vit-self-contrastive",
    "vit",
    "contrastive",
    "self",
    encoder_args=SMALL["vit"],
    steps=STEPS["contrastive"],
    bf16=True,
    **CONTRASTIVE,
)
