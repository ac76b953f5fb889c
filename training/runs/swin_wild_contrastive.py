"""The small Swin, contrastive, in the wild; its learning rate is that of its twin, `swin_self_contrastive`.

`python -m training.pretrain swin_wild_contrastive`, then `python -m training.release.encoder
swin_wild_contrastive`.
"""

from training.recipe import CONTRASTIVE, SMALL, STEPS, Run

run = Run(
    "swin-wild-contrastive",
    "swin",
    "contrastive",
    "wild",
    encoder_args=SMALL["swin"],
    steps=STEPS["contrastive"],
    lr=3e-4,
    bf16=True,
    **CONTRASTIVE,
)
