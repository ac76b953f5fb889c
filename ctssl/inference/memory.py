"""How much memory a whole scan takes, before it takes it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from ctssl.volume.grids import working_grid
from ctssl.volume.volume import Volume, read, read_grid
from ctssl.zoo import channels_of

T = TypeVar("T")

LIBRARIES = 1.2e9  # bytes that Python, torch, MONAI and a model take before the first scan
ACTIVATIONS = 200  # numbers that a network holds for each voxel of a window, at most


def read_within(source: Any, plan: Callable[[Volume], T], *, series: str | None = None) -> tuple[Volume, T]:
    """Read a scan for which `plan` finds enough memory; the header of a NIfTI file or a DICOM series is checked first.

    Args:
        source, series: as for `ctssl.read`.
        plan: called with the scan's grid; raises `ValueError` where the memory is too small.

    Returns:
        The scan and its plan.
    """
    ahead = read_grid(source, series=series)
    if ahead is not None:
        plan(ahead)
    volume = read(source, series=series)
    return volume, plan(volume)


def plan_slices(
    volume: Volume,
    spacing_mm: float,
    side: int,
    *,
    classes: int,
    max_memory_gb: float,
    maps: int = 0,
    channels: int = 1,
) -> int:
    """Choose how many slices of the scan's last axis are brought back to its own grid at a time.

    The number changes the memory, not the mask.

    Args:
        volume: the scan; only its shape and affine are used.
        spacing_mm: working spacing of the model in mm.
        side: voxels along each side of a window.
        classes: with the background.
        max_memory_gb: memory limit of the process in GB.
        maps: number of maps of probabilities on the scan's grid that are kept too.
        channels: of the scan.

    Raises:
        ValueError: not even one slice at a time fits.
    """
    own = math.prod(volume.shape)
    size = working_grid(volume, spacing_mm)[0]
    grid = [max(n, side) for n in size]
    fixed = LIBRARIES + own * (4 * channels + 1 + (4 * maps + 14 if maps else 0))  # the scan, the mask
    copies = channels * (1 + (channels > 1) + (min(size) < side))  # as they are, stacked, padded
    fixed += math.prod(grid) * (4 * copies + 2 * classes)  # the image, probabilities
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


def check_features(
    volume: Volume, encoder: Any, spacing_mm: float, tile: int, *, max_memory_gb: float
) -> None:
    """Raise `ValueError` for a scan whose features need more memory than allowed.

    Args:
        volume: the scan; only its shape and affine are used.
        encoder: its `channels` and `strides` count.
        spacing_mm: working spacing in mm.
        tile: voxels along each side of what goes through the encoder at once.
        max_memory_gb: memory limit of the process in GB.
    """
    own, grid = math.prod(volume.shape), working_grid(volume, spacing_mm)[0]
    maps = [
        c * math.prod(-(-n // s) for n in grid)
        for c, s in zip(encoder.channels, encoder.strides, strict=True)
    ]
    channels = channels_of(encoder)
    held = channels * (own + (2 + channels) * math.prod(grid)) if channels > 1 else own + 3 * math.prod(grid)
    need = LIBRARIES + 4 * (held + max(own, math.prod(grid)))  # resampled, windowed
    need += 4 * (sum(maps) + maps[-1]) + tile**3 * 4 * ACTIVATIONS
    if need > max_memory_gb * 1e9:
        raise ValueError(
            f"{volume.name}: at {spacing_mm:g} mm it has {' x '.join(map(str, grid))} voxels, which need about "
            f"{need / 1e9:.1f} GB, more than the {max_memory_gb:g} GB allowed; allow more (--max-memory), cut the "
            "scan, or take a model of a coarser spacing"
        )
