"""The small Swin, SMIT, in the wild.

`python -m training.pretrain swin_wild_smit`, then `python -m training.release.encoder swin_wild_smit`.
"""

from training.recipe import DISTILLED, SMALL, STEPS, Run

run = Run(
    "swin-wild-smit",
    "swin",
    "smit",
    "wild",
    encoder_args=SMALL["swin"],
    steps=STEPS["smit"],
    bf16=True,
    **DISTILLED,
)
