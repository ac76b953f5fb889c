"""The small Swin, contrastive, self (the training side of the sarcoma scans).

`python -m training.pretrain swin_self_contrastive`, then `python -m training.export swin_self_contrastive`.
"""

from training.run import CONTRASTIVE, SMALL, STEPS, Run

run = Run(
    "swin-self-contrastive", "swin", "contrastive", "self", encoder_args=SMALL["swin"], steps=STEPS["contrastive"], bf16=True,
    **CONTRASTIVE,
)  # fmt: skip
