"""A shift as a MONAI transform, and shifted copies of training scans."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctssl.shifts import SHIFTS, check_shift, shift
from ctssl.volume import Volume

TRAINED = tuple(name for name in SHIFTS if name != "truncation")
"""What copies for a training are made with: a label outside the field of view teaches nothing."""


class ShiftTransform:
    """A MONAI transform, by its shape alone: it is called with an image, or with a dictionary if there are `keys`.

    Args:
        names: one shift or several, of which each call draws one.
        severity: 1 to 5; None draws one.
        prob: share of the calls that shift at all.
        keys: of a dictionary, the scans to shift, all of them alike. Labels need no shift.
        seed: of the draws; MONAI's `set_random_state` (workers of a data loader) sets it anew.

    An image is a `MetaTensor` in HU, `(C, X, Y, Z)` with C = 1 or `(X, Y, Z)`, since the spacing comes from its affine. Use it
    before anything that scales intensities or crops.
    """

    def __init__(self, names: str | tuple[str, ...] = TRAINED, *, severity: int | None = None, prob: float = 1.0,
                 keys: tuple[str, ...] = (), seed: int = 0) -> None:  # fmt: skip
        self.names = (names,) if isinstance(names, str) else tuple(names)
        for name in self.names:
            check_shift(name, severity or 1)
        self.severity, self.prob, self.keys = severity, prob, keys
        self.set_random_state(seed)

    def set_random_state(self, seed: int | None = None, state: Any = None) -> ShiftTransform:
        """Start the draws again; `state` is there for MONAI and not used."""
        self.rng = np.random.default_rng(seed)
        return self

    def __call__(self, data: Any) -> Any:
        name = self.names[int(self.rng.integers(len(self.names)))]
        severity = self.severity or int(self.rng.integers(1, 6))
        seed, wanted = int(self.rng.integers(2**31)), self.rng.random() < self.prob
        if not wanted:
            return data
        if not self.keys:
            return self._image(data, name, severity, seed)
        return {**data, **{key: self._image(data[key], name, severity, seed) for key in self.keys}}

    @staticmethod
    def _image(image: Any, name: str, severity: int, seed: int) -> Any:
        import torch
        from monai.data.meta_tensor import MetaTensor

        if not isinstance(image, MetaTensor):
            raise ValueError(f"a {type(image).__name__} has no affine, and a shift needs the spacing: load the scan with "
                             "MONAI's LoadImage, or make a MetaTensor(array, affine=...)")  # fmt: skip
        array = image.detach().cpu().numpy()
        if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[0] != 1):
            raise ValueError(f"a shift takes one scan, (1, X, Y, Z) or (X, Y, Z), not {tuple(array.shape)}")
        scan = Volume(array.reshape(array.shape[-3:]).astype(np.float32), np.asarray(image.affine, float))
        found = shift(scan, name, severity=severity, seed=seed).array.reshape(array.shape)
        return MetaTensor(torch.from_numpy(found), meta=image.meta)  # with its affine


def shifted_copies(scan: Volume, count: int, *, seed: int = 0) -> list[Volume]:
    """`count` copies of a scan, each with a shift and a severity drawn by the seed: augmentation made before a training,
    since a shift takes seconds."""
    if count < 0:
        raise ValueError(f"{count} shifted copies: a number from 0")
    rng, copies = np.random.default_rng([seed, 7]), []
    for _ in range(count):
        name = TRAINED[int(rng.integers(len(TRAINED)))]
        copies.append(shift(scan, name, severity=int(rng.integers(1, 6)), seed=int(rng.integers(2**31))))
    return copies
