"""Masks and probabilities of whole scans, on the scan's own grid."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ctssl.volume.grids import resample
from ctssl.volume.volume import Volume, read

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter
from ctssl.inference.memory import MEMORY_GB, plan
from ctssl.inference.windows import windowed


def segment(
    model: Segmenter,
    source: Any,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    progress: bool = False,
) -> Volume:
    """See `Segmenter.segment`."""
    volume = read(source)
    slices = plan(model, volume, max_memory_gb)
    found, affine = windowed(model, volume, overlap=overlap, tta=tta, progress=progress)
    return replace(volume, array=onto(found, affine, volume, slices, threshold=model.threshold))


def probabilities(
    model: Segmenter,
    source: Any,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    progress: bool = False,
) -> dict[str, Volume]:
    """See `Segmenter.probabilities`."""
    return mask_and_maps(
        model, source, overlap=overlap, tta=tta, max_memory_gb=max_memory_gb, progress=progress
    )[1]


def mask_and_maps(
    model: Segmenter,
    source: Any,
    *,
    overlap: float = 0.5,
    tta: bool = False,
    max_memory_gb: float = MEMORY_GB,
    progress: bool = False,
) -> tuple[Volume, dict[str, Volume]]:
    """The mask of `segment` and the maps of `probabilities`, from one run."""
    volume = read(source)
    slices = plan(model, volume, max_memory_gb, maps=len(model.labels))
    found, affine = windowed(model, volume, overlap=overlap, tta=tta, progress=progress)
    mask = replace(volume, array=onto(found, affine, volume, slices, threshold=model.threshold))
    return mask, {
        name: replace(
            volume,
            array=resample(found[k], affine, volume.shape, volume.affine),
            name=f"{volume.name} {name}",
        )
        for k, name in model.labels.items()
    }


def likeliest(maps: list[np.ndarray], labels: list[int], threshold: float = 0.5) -> np.ndarray:
    """The label (uint8) whose probability is highest, where it beats that of the background, which is the
    rest (see `odds`)."""
    total, best, numbers = np.zeros_like(maps[0]), np.zeros_like(maps[0]), np.zeros(maps[0].shape, np.uint8)
    for label, one in zip(labels, maps, strict=True):
        total += one
        better = one > best
        best[better], numbers[better] = one[better], label
    numbers[best <= (1 - total) * odds(threshold)] = 0
    return numbers


def odds(threshold: float) -> float:
    """How many times as likely as the background a label has to be; at a threshold of 0.5 the likeliest of
    all wins."""
    return threshold / (1 - threshold)


def onto(
    found: np.ndarray,
    affine: np.ndarray,
    volume: Volume,
    slices: int | None = None,
    *,
    threshold: float = 0.5,
) -> np.ndarray:
    """Probabilities `(classes, x, y, z)` on a working grid -> uint8 labels `(X, Y, Z)` on the scan's own
    grid, the likeliest of each voxel that beats the background (see `odds`); `slices` at a time."""
    labels = np.zeros(volume.shape, np.uint8)
    slices = slices or volume.shape[2]
    for first in range(0, volume.shape[2], slices):
        part = labels[:, :, first : first + slices]
        grid = volume.affine.copy()
        grid[:3, 3] += grid[:3, 2] * first
        best = np.zeros(part.shape, np.float32)
        for number, one in enumerate(found):
            here = resample(one, affine, part.shape, grid, fill=float(number == 0))
            here = here if number else here * odds(threshold)
            better = here > best
            part[better], best[better] = number, here[better]
    return labels
