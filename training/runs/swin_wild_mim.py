"""The small Swin, masked image modelling, in the wild.

`python -m training.pretrain swin_wild_mim`, then `python -m training.release.encoder swin_wild_mim`.
"""

from training.recipe import SMALL, STEPS, Run

run = Run("swin-wild-mim", "swin", "mim", "wild", encoder_args=SMALL["swin"], steps=STEPS["mim"])
