"""The small ViT, masked image modelling, self (the training side of the sarcoma scans).

`python -m training.pretrain vit_self_mim`, then `python -m training.release.encoder vit_self_mim`.
"""

from training.recipe import SMALL, STEPS, Run

run = Run("vit-self-mim", "vit", "mim", "self", encoder_args=SMALL["vit"], steps=STEPS["mim"])
