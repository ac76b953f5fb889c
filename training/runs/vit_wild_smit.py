"""The small ViT, SMIT, in the wild.

`python -m training.pretrain vit_wild_smit`, then `python -m training.release.encoder vit_wild_smit`.
"""

from training.recipe import DISTILLED, SMALL, STEPS, Run

run = Run(
    "vit-wild-smit",
    "vit",
    "smit",
    "wild",
    encoder_args=SMALL["vit"],
    steps=STEPS["smit"],
    bf16=True,
    **DISTILLED,
)
