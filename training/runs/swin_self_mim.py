"""The small Swin, masked image modelling, self (the training side of the sarcoma scans).

`python -m training.pretrain swin_self_mim`, then `python -m training.release.encoder swin_self_mim`.
"""

from training.recipe import SMALL, STEPS, Run

run = Run("swin-self-mim", "swin", "mim", "self", encoder_args=SMALL["swin"], steps=STEPS["mim"])
