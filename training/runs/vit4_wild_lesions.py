"""A ViT with patches of 4 voxels, taught to segment lesions pasted into 46 scans, from random weights.

`python -m training.pretrain vit4_wild_lesions`, then `python -m training.release.encoder vit4_wild_lesions`.
"""

from training.recipe import LESIONS, SMALL, STEPS, Run

run = Run(
    "vit4-wild-lesions",
    "vit",
    "lesions",
    "wild46",
    encoder_args={**SMALL["vit"], "patch": 4},
    steps=STEPS["lesions"],
    **LESIONS,
)
