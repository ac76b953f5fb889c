"""A shift as a MONAI transform."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.transform import RandomizableTransform

from ctssl.scan_checks import check
from ctssl.shifts import check_shift, shift
from ctssl.shifts.copies import TRAINED
from ctssl.volume.volume import Volume


class ShiftTransform(RandomizableTransform):
    """Apply a random acquisition shift to an image, or to entries of a dictionary if there are `keys`.

    An image is a `MetaTensor` in HU, `(C, X, Y, Z)` with C = 1 or `(X, Y, Z)`; its affine gives the spacing.
    Use the transform before anything that scales intensities or crops: images that cannot be in HU raise an
    error (`ctssl.scan_checks`), suspicious ones, such as an identity affine, a warning.

    Args:
        names: one shift or several, one of which is drawn per call.
        severity: 1 to 5; None draws one.
        prob: probability of a shift, 0 to 1.
        keys: entries of the dictionary to shift, all alike. Labels need no shift.
        seed: seed of the draws; a `Compose` with its own state, and MONAI's `DataLoader` in each worker,
            override it.
    """

    def __init__(
        self,
        names: str | tuple[str, ...] = TRAINED,
        *,
        severity: int | None = None,
        prob: float = 1.0,
        keys: str | tuple[str, ...] = (),
        seed: int = 0,
    ) -> None:
        if not 0 <= prob <= 1:
            raise ValueError(f"invalid prob={prob} (must be 0 to 1)")
        super().__init__(prob)
        self.names = (names,) if isinstance(names, str) else tuple(names)
        if not self.names:
            raise ValueError("names is empty; give at least one shift")
        for name in self.names:
            check_shift(name, 1 if severity is None else severity)
        self.severity, self.keys = severity, (keys,) if isinstance(keys, str) else tuple(keys)
        self.set_random_state(seed)

    def __call__(self, data: Any) -> Any:
        self.randomize(None)  # decides whether to shift
        name = self.names[self.R.randint(len(self.names))]
        severity, seed = self.severity or self.R.randint(1, 6), self.R.randint(2**31 - 1)
        if not self._do_transform:
            return data
        if not self.keys:
            return self._image(data, name, severity, seed)
        if missing := [key for key in self.keys if key not in data]:
            raise ValueError(
                f"the dictionary has no {', '.join(missing)}; it has {', '.join(map(str, data))}"
            )
        return {**data, **{key: self._image(data[key], name, severity, seed) for key in self.keys}}

    @staticmethod
    def _image(image: Any, name: str, severity: int, seed: int) -> Any:
        if not isinstance(image, MetaTensor):
            raise ValueError(
                f"a {type(image).__name__} has no affine, but a shift needs the spacing; load the scan with "
                "MONAI's LoadImage, or create a MetaTensor(array, affine=...)"
            )
        array = image.detach().cpu().numpy()
        if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[0] != 1):
            raise ValueError(f"a shift takes one scan, (1, X, Y, Z) or (X, Y, Z), not {tuple(array.shape)}")
        scan = Volume(array.reshape(array.shape[-3:]).astype(np.float32), np.asarray(image.affine, float))
        check(scan)
        shifted = torch.from_numpy(shift(scan, name, severity=severity, seed=seed).array.reshape(array.shape))
        return MetaTensor(shifted, meta=image.meta, applied_operations=image.applied_operations).to(
            image.device
        )
