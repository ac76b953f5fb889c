"""The small ViT, contrastive in the wild (26 scans), then taught to segment lesions pasted into 46.

`python -m training.pretrain vit_wild_lesions`, then `python -m training.release.encoder vit_wild_lesions`.
"""

from training.recipe import LESIONS, SMALL, STEPS, Run

run = Run(
    "vit-wild-lesions",
    "vit",
    "lesions",
    "wild46",
    init="vit-wild-contrastive",
    encoder_args=SMALL["vit"],
    steps=STEPS["lesions"],
    **LESIONS,
)
