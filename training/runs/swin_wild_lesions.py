"""The small Swin, contrastive in the wild (26 scans), then taught to segment lesions pasted into 46.

`python -m training.pretrain swin_wild_lesions`, then `python -m training.release.encoder swin_wild_lesions`.
"""

from training.recipe import LESIONS, SMALL, STEPS, Run

run = Run(
    "swin-wild-lesions",
    "swin",
    "lesions",
    "wild46",
    init="swin-wild-contrastive",
    encoder_args=SMALL["swin"],
    steps=STEPS["lesions"],
    **LESIONS,
)
