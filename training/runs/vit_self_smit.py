"""The small ViT, SMIT, self (the training side of the sarcoma scans).

`python -m training.pretrain vit_self_smit`, then `python -m training.release.encoder vit_self_smit`.
"""

from training.recipe import DISTILLED, SMALL, STEPS, Run

run = Run(
    "vit-self-smit",
    "vit",
    "smit",
    "self",
    encoder_args=SMALL["vit"],
    steps=STEPS["smit"],
    bf16=True,
    **DISTILLED,
)
