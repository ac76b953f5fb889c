"""MONAI's self-supervised `model_swinvit.pt` (Tang, CVPR 2022): `SwinUNETR`'s Swin with `fc1`, `fc2` and
pretext heads.
"""

from __future__ import annotations

from torch import Tensor

from ctssl.convert.families.monai_swinunetr import OPTIONS as OPTIONS
from ctssl.convert.families.monai_swinunetr import STAGE
from ctssl.convert.families.monai_swinunetr import translate as translate

TITLE = "MONAI's self-supervised model_swinvit.pt"
WINDOW_HU, SPACING_MM = (-1000.0, 1000.0), 1.5


def looks(state: dict[str, Tensor]) -> bool:
    """Return whether these are keys of `model_swinvit.pt`."""
    return any(STAGE.fullmatch(key) and "mlp.fc1" in key for key in state)
