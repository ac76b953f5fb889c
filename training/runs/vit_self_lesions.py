"""The small ViT, taught to segment lesions pasted into the 150 training scans of the lung tumour task, from random weights.

`python -m training.pretrain vit_self_lesions`, then `python -m training.release.encoder vit_self_lesions`.
"""

from training.recipe import LESIONS, SMALL, STEPS, Run

run = Run(
    "vit-self-lesions",
    "vit",
    "lesions",
    "lung",
    encoder_args=SMALL["vit"],
    steps=STEPS["lesions"],
    **LESIONS,
)
