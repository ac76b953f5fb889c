"""The small Swin, SMIT, in the wild and then self: starts from `swin-wild-smit`.

It continues on the training side of the sarcoma scans. `python -m training.pretrain swin_wild_self_smit`,
then `python -m training.release.encoder swin_wild_self_smit`.
"""

from training.recipe import DISTILLED, SMALL, STEPS, Run

run = Run(
    "swin-wild-self-smit",
    "swin",
    "smit",
    "self",
    init="swin-wild-smit",
    encoder_args=SMALL["swin"],
    steps=STEPS["smit"],
    bf16=True,
    **DISTILLED,
)
