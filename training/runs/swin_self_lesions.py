"""The small Swin, taught to segment lesions pasted into the 150 training scans of the lung tumour task, from random weights.

`python -m training.pretrain swin_self_lesions`, then `python -m training.release.encoder swin_self_lesions`.
"""

from training.recipe import LESIONS, SMALL, STEPS, Run

run = Run(
    "swin-self-lesions",
    "swin",
    "lesions",
    "lung",
    encoder_args=SMALL["swin"],
    steps=STEPS["lesions"],
    **LESIONS,
)
