"""The small ViT, contrastive, in the wild.

`python -m training.pretrain vit_wild_contrastive`, then `python -m training.release.encoder
vit_wild_contrastive`.
"""

from training.recipe import CONTRASTIVE, SMALL, STEPS, Run

run = Run(
    "vit-wild-contrastive",
    "vit",
    "contrastive",
    "wild",
    encoder_args=SMALL["vit"],
    steps=STEPS["contrastive"],
    bf16=True,
    **CONTRASTIVE,
)
