"""The small ViT, masked image modelling, in the wild.

`python -m training.pretrain vit_wild_mim`, then `python -m training.release.encoder vit_wild_mim`.
"""

from training.recipe import SMALL, STEPS, Run

run = Run("vit-wild-mim", "vit", "mim", "wild", encoder_args=SMALL["vit"], steps=STEPS["mim"])
