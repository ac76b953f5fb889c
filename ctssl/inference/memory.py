"""How much memory a whole scan takes, before it takes it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ctssl.volume.grids import working_grid
from ctssl.volume.volume import Volume
from ctssl.zoo import Preprocess

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter

MEMORY_GB = 8.0  # ceiling for a run of `segment`
LIBRARIES = 1.2e9  # bytes that Python, torch, MONAI and a model take before the first scan
ACTIVATIONS = 200  # numbers that a network holds for each voxel of a window, at most


def plan(model: Segmenter, volume: Volume, max_memory_gb: float, *, maps: int = 0) -> int:
    """Slices of the scan's last axis that the mask is brought back at a time, so that a run stays under
    `max_memory_gb`.

    `maps`: float volumes on the scan's grid that are kept too, with what makes a mask of them. Raises
    `ValueError` when one slice at a time does not fit. The mask does not depend on the ceiling.
    """
    own = math.prod(volume.shape)
    shape, _ = working_grid(volume, (model.spec.preprocess if model.spec else Preprocess()).spacing_mm)
    grid = [max(n, model.window) for n in shape]
    fixed = LIBRARIES + own * (4 + 1 + (4 * maps + 14 if maps else 0))  # the scan, the mask
    fixed += math.prod(grid) * (4 + 2 * model.classes)  # the image, probabilities
    fixed += (
        math.prod(grid[1:]) * model.window * 4 * model.classes + model.window**3 * 4 * ACTIVATIONS
    )  # the windows at work
    fixed += max(4 * own, 4 * math.prod(grid))  # a copy while the scan is resampled, or a class
    slice_ = math.prod(volume.shape[:2]) * 4 * 6
    room = int((max_memory_gb * 1e9 - fixed) // slice_)
    if room < 1:
        size = " x ".join(map(str, volume.shape))
        raise ValueError(
            f"{volume.name}: {size} voxels need about {(fixed + slice_) / 1e9:.1f} GB, more than the "
            f"{max_memory_gb:g} GB allowed; allow more (--max-memory), or cut the scan"
        )
    return min(room, volume.shape[2])
