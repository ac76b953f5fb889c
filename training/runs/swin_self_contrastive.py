"""The small Swin, contrastive, self (the training side of the sarcoma scans).

At the other runs' learning rate of 8e-4 it did not learn (8% of the twins found after 1,100 steps); at 3e-4
it does. `python -m training.pretrain swin_self_contrastive`, then `python -m training.release.encoder
swin_self_contrastive`.
"""

from training.recipe import CONTRASTIVE, SMALL, STEPS, Run

run = Run(
    "swin-self-contrastive",
    "swin",
    "contrastive",
    "self",
    encoder_args=SMALL["swin"],
    steps=STEPS["contrastive"],
    lr=3e-4,
    bf16=True,
    **CONTRASTIVE,
)
