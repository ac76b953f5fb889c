"""How a segmenter is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields


@dataclass(frozen=True)
class Settings:
    """How a segmenter is trained.

    Args:
        steps: training steps.
        minutes: train for about this long instead, validation and scoring included; the number of steps
            follows from the pace and is corrected on the way.
        batch: crops per step and device; 0: four of 64 voxels, or as many others as take about that time.
        crop: voxels along each side of a crop; 0: derived from the structures and the scans.
        lr: peak learning rate of the head, and of an encoder with initial weights.
        encoder_lr: peak learning rate of a pretrained encoder.
        warmup_head: share of the steps in which the head learns alone, before a pretrained encoder joins in.
        interpolate: share of the starting weights in the result, which is the weighted mean of these and the trained ones
            (WiSE-FT, arXiv 2109.01903): better on scans unlike the training cases. For a model that brings its head.
        layer_decay: factor of the learning rate for every block further from the end (timm); 1 for none.
        freeze: train the head alone.
        ema: decay of an average of the weights that is validated and kept (timm); 0 for none.
        weight_decay: of AdamW.
        warmup: share of the steps in which the learning rate rises.
        foreground: share of the crops that hold a labelled voxel, anywhere in the crop.
        empty: share of the crops from scans with an empty mask, such as those of healthy people, where there are any; 0: they
            are drawn as often as any other scan.
        trim: chance of cutting margins off the scan first (at most half of it along each axis), so that the
            place of a tumour between the scan's borders says nothing. Mirroring is always on.
        warp: chance of turning by up to `degrees` and scaling by up to `zoom`.
        degrade: chance of each of gamma, blur, noise and a coarser look.
        intensity: how far values (0 to 1) are stretched and moved.
        shift_augment: copies of each training scan under random CT acquisition shifts (`ctssl.shifts`).
        bf16: half precision on a CPU too, which pays where it has instructions for it (AVX512_BF16, AMX); a
            GPU takes it wherever it does not emulate it (NVIDIA: Ampere and later).
        validation: share of the training patients (of ten or more) that are held back for validation: they
            pick the threshold and, where they have five or more cases, the weights and the stopping point.
        evaluations: how often whole validation scans are segmented. The best weights by a moving average of
            their DSC are kept, from half of the steps on, when the learning rate has fallen.
        patience: evaluations without progress after which the training ends.
        seed: of everything that is drawn.
        deterministic: the same weights in every run, on one machine with the same versions; slower on a GPU, where nobody has
            tried it yet. On a CPU they are the same without it.
        save_minutes: between two saves of the state.

    Raises `ValueError` for invalid values.
    """

    steps: int = 600
    minutes: float | None = None
    batch: int = 0
    crop: int = 0
    lr: float = 1e-3
    encoder_lr: float = 3e-4
    warmup_head: float = 0.0
    interpolate: float = 0.0
    layer_decay: float = 1.0
    freeze: bool = False
    ema: float = 0.0
    weight_decay: float = 0.01
    warmup: float = 0.05
    foreground: float = 0.6
    empty: float = 0.0
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
    deterministic: bool = False

    def __post_init__(self) -> None:
        if odd := [
            f"{f.name}={getattr(self, f.name)!r}"
            for f in fields(self)
            if not fits(getattr(self, f.name), str(f.type))
        ]:
            raise ValueError(
                f"invalid settings: {', '.join(odd)} (another type is needed, see ctssl.Settings)"
            )
        least = {
            "steps": 1,
            "batch": 0,
            "crop": 0,
            "evaluations": 1,
            "patience": 1,
            "shift_augment": 0,
            "seed": 0,
        }
        wrong = [
            f"{key}={getattr(self, key)} (must be >= {n})"
            for key, n in least.items()
            if getattr(self, key) < n
        ]
        for keys, low, high, text in (
            (("lr", "encoder_lr", "layer_decay", "zoom"), 0, math.inf, "> 0"),
            (("ema", "interpolate", "validation", "warmup", "warmup_head"), None, 1, ">= 0 and < 1"),
            (("foreground", "empty", "trim", "warp", "degrade"), None, math.nextafter(1, 2), "from 0 to 1"),
        ):
            for key in keys:
                value = getattr(self, key)
                above = value > low if low is not None else value >= 0
                if not (above and value < high):
                    wrong.append(f"{key}={value:g} (must be {text})")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            wrong.append(f"minutes={self.minutes:g} (must be > 0)")
        if wrong:
            raise ValueError(f"invalid settings: {', '.join(wrong)}")


def fits(value: object, kind: str) -> bool:
    """Return whether a value is of the kind that a field is declared as.

    >>> fits(3, "float"), fits(2.5, "int"), fits(None, "float | None"), fits(1, "bool")
    (True, False, True, False)
    """
    if kind == "bool" or isinstance(value, bool):
        return kind == "bool" and isinstance(value, bool)
    if value is None:
        return kind.endswith("None")
    return isinstance(value, int) or (kind != "int" and isinstance(value, float))
