"""How a segmenter is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Settings:
    """How a segmenter is trained. `warmup`: a share of `steps`.

    `crop` in voxels of the model's spacing; 0: 64, or 96 for tumours of more than 32 voxels, which need more
    around them. `batch`: crops per step and device; 0: four of 64 voxels, or as many larger ones as take
    about that time. `minutes`: train for about so long instead of `steps`; the number of steps follows from
    the speed of the first ten. `encoder_lr` is the learning rate of a pretrained encoder; one from scratch,
    and every head, takes `lr`. `layer_decay` multiplies it once more for every block further from the end
    (timm). `freeze`: leave the encoder as it is. `ema`: decay of the average of weights that is judged and
    kept (timm's), 0 for none. `bf16`: half precision on a CPU too, which pays where it has instructions for
    it (AVX512_BF16, AMX); a GPU always takes it.

    `validation`: share of the training patients (of ten or more) on whose crops the weights are judged
    `evaluations` times. The best by a moving average of that DSC are kept (single evaluations on a few crops
    are noisy), from half of the steps on, when the learning rate has fallen; the training ends when
    `patience` evaluations in a row then brought nothing.

    Augmentation: mirroring always; `trim` is the chance of cutting margins off the scan first (at most half
    of it along each axis), so that where a tumour lies between the scan's borders says nothing; `warp` the
    chance of turning by up to `degrees` and scaling by up to `zoom`; `degrade` the chance of each of gamma,
    blur, noise and a coarser look; `intensity` how far values (0..1) are stretched and moved; `shift_augment`
    so many copies of each training scan, as another protocol or kernel would have given it (`ctssl.shifts`).
    """

    steps: int = 600
    minutes: float | None = None
    batch: int = 0
    crop: int = 0
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    layer_decay: float = 1.0
    freeze: bool = False
    ema: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    foreground: float = 0.6  # share of crops around a labelled voxel, anywhere in the crop
    trim: float = 0.5
    warp: float = 0.3
    degrees: float = 20.0
    zoom: float = 1.3
    degrade: float = 0.15
    intensity: float = 0.05
    shift_augment: int = 0
    bf16: bool = False
    validation: float = 0.1
    evaluations: int = 20
    patience: int = 5
    seed: int = 0
    save_minutes: float = 5.0

    def __post_init__(self) -> None:
        wrong = [
            f"{name}={getattr(self, name)} (at least {least})"
            for name, least in (
                ("steps", 1),
                ("batch", 0),
                ("crop", 0),
                ("evaluations", 1),
                ("patience", 1),
                ("shift_augment", 0),
                ("seed", 0),
            )
            if getattr(self, name) < least
        ]
        wrong += [
            f"{name}={getattr(self, name):g} (above 0)"
            for name in ("lr", "encoder_lr", "layer_decay", "zoom")
            if not 0 < getattr(self, name) < math.inf
        ]
        wrong += [
            f"{name}={getattr(self, name):g} (0 to below 1)"
            for name in ("ema", "validation", "warmup")
            if not 0 <= getattr(self, name) < 1
        ]
        wrong += [
            f"{name}={getattr(self, name):g} (0 to 1)"
            for name in ("foreground", "trim", "warp", "degrade")
            if not 0 <= getattr(self, name) <= 1
        ]
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            wrong.append(f"minutes={self.minutes:g} (above 0)")
        if wrong:
            raise ValueError(f"settings that cannot be: {', '.join(wrong)}")
