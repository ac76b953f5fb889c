"""The small Swin, SMIT, self (the training side of the sarcoma scans).

`python -m training.pretrain swin_self_smit`, then `python -m training.release.encoder swin_self_smit`.
"""

from training.recipe import DISTILLED, SMALL, STEPS, Run

run = Run(
    "swin-self-smit",
    "swin",
    "smit",
    "self",
    encoder_args=SMALL["swin"],
    steps=STEPS["smit"],
    bf16=True,
    **DISTILLED,
)
