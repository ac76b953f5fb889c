"""How much memory a whole scan takes, before it takes it."""

from __future__ import annotations

import math

from ctssl.volume.grids import working_grid
from ctssl.volume.volume import Volume

LIBRARIES = 1.2e9  # bytes that Python, torch, MONAI and a model take before the first scan
ACTIVATIONS = 200  # numbers that a network holds for each voxel of a window, at most


def plan_slices(
    volume: Volume, spacing_mm: float, side: int, *, classes: int, max_memory_gb: float, maps: int = 0
) -> int:
    """Choose how many slices of the scan's last axis are brought back to its own grid at a time.

    The mask does not depend on the result, the memory does.

    Args:
        volume: the scan; only its shape and affine are used.
        spacing_mm: working spacing of the model in mm.
        side: voxels along each side of a window.
        classes: with the background.
        max_memory_gb: memory limit of the process in GB.
        maps: float volumes on the scan's grid that are kept too, with what makes a mask of them.

    Raises:
        ValueError: not even one slice at a time fits.
    """
    own = math.prod(volume.shape)
    grid = [max(n, side) for n in working_grid(volume, spacing_mm)[0]]
    fixed = LIBRARIES + own * (4 + 1 + (4 * maps + 14 if maps else 0))  # the scan, the mask
    fixed += math.prod(grid) * (4 + 2 * classes)  # the image, probabilities
    fixed += math.prod(grid[1:]) * side * 4 * classes + side**3 * 4 * ACTIVATIONS  # the windows at work
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
