"""Masks and probabilities of whole scans, on the scan's own grid."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch

from ctssl.compiling import compile_blocks
from ctssl.inference.features import prepared
from ctssl.inference.memory import plan_slices, read_within
from ctssl.inference.ranges import warn_unlike_training
from ctssl.inference.windows import Windows, slide
from ctssl.precision import deterministic
from ctssl.volume.grids import AROUND, resample
from ctssl.volume.volume import Volume
from ctssl.zoo import ModelSpec, Preprocess, channels_of


class Network(Protocol):
    """What segments whole scans: a call that gives logits, and what has to be known about it."""

    encoder: Any
    window: int
    classes: int
    labels: dict[int, str]

    @property
    def threshold(self) -> float: ...

    @property
    def spec(self) -> ModelSpec | None: ...

    def __call__(self, image: torch.Tensor) -> torch.Tensor: ...


def segment(model: Network, source: Any, windows: Windows = Windows(), *, progress: bool = False) -> Volume:
    """Segment a scan; see `Segmenter.segment`."""
    return _run(model, source, windows, maps=0, progress=progress)[0]


def probabilities(
    model: Network, source: Any, windows: Windows = Windows(), *, progress: bool = False
) -> dict[str, Volume]:
    """Compute the probability of each label; see `Segmenter.probabilities`."""
    return mask_and_maps(model, source, windows, progress=progress)[1]


def mask_and_maps(
    model: Network, source: Any, windows: Windows = Windows(), *, progress: bool = False
) -> tuple[Volume, dict[str, Volume]]:
    """Compute the mask of `segment` and the maps of `probabilities` in one run."""
    mask, found, affine = _run(model, source, windows, maps=len(model.labels), progress=progress)
    return mask, {
        name: mask.on_grid(
            resample(found[k], affine, mask.shape, mask.affine, edge=AROUND), f"{mask.name} {name}"
        )
        for k, name in model.labels.items()
    }


def _run(
    model: Network, source: Any, windows: Windows, *, maps: int, progress: bool
) -> tuple[Volume, np.ndarray, np.ndarray]:
    """Segment a scan: return its mask and what `probabilities_of` gives. `maps`: how many are held besides."""
    volume, slices = read_within(
        source, lambda grid: slices_within_memory(model, grid, windows.max_memory_gb, maps=maps)
    )
    found, affine = probabilities_of(model, prepared(model.encoder, volume), windows, progress=progress)
    mask = volume.on_grid(onto(found, affine, volume, slices, threshold=model.threshold))
    warn_unlike_training(model, mask)
    return mask, found, affine


def slices_within_memory(model: Network, volume: Volume, max_memory_gb: float, *, maps: int = 0) -> int:
    """Call `plan_slices` for a model."""
    spacing_mm = (model.spec.preprocess if model.spec else Preprocess()).spacing_mm
    return plan_slices(
        volume,
        spacing_mm,
        model.window,
        classes=model.classes,
        max_memory_gb=max_memory_gb,
        maps=maps,
        channels=channels_of(model),
    )


def probabilities_of(
    model: Any, image: Volume, windows: Windows = Windows(), *, progress: bool = False, skip_air: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Run a model over a prepared image (`prepared`), in evaluation mode.

    Returns:
        Probabilities `(classes, x, y, z)` float16 on the image's own grid, and its affine.
    """
    training, like = model.training, next(model.parameters())
    model.eval()
    if windows.compiled:
        compile_once(model)
    with deterministic(enabled=windows.deterministic):
        found = slide(
            model,
            image.stack,
            model.window,
            classes=model.classes,
            windows=windows,
            device=like.device,
            dtype=like.dtype,
            name=image.name,
            progress=progress,
            skip_air=skip_air,
        )
    model.train(training)
    return found, image.affine


def compile_once(model: Any) -> None:
    """Compile the encoder of a segmenter, or of every member of an ensemble, unless that was done before."""
    for one in getattr(model, "members", [model]):
        if not getattr(one.encoder, "compiled", False):
            compile_blocks(one.encoder)
            one.encoder.compiled = True


def likeliest(maps: list[np.ndarray], labels: list[int], threshold: float = 0.5) -> np.ndarray:
    """Return the label (uint8) whose probability is highest, where it beats that of the background, which is
    the rest (see `odds`)."""
    total, best, numbers = np.zeros_like(maps[0]), np.zeros_like(maps[0]), np.zeros(maps[0].shape, np.uint8)
    for label, one in zip(labels, maps, strict=True):
        total += one
        better = one > best
        best[better], numbers[better] = one[better], label
    numbers[best <= (1 - total) * odds(threshold)] = 0
    return numbers


def odds(threshold: float) -> float:
    """Return how many times as likely as the background a label has to be; at a threshold of 0.5 the likeliest
    of all wins."""
    return threshold / (1 - threshold)


def onto(
    found: np.ndarray,
    affine: np.ndarray,
    volume: Volume,
    slices: int | None = None,
    *,
    threshold: float = 0.5,
) -> np.ndarray:
    """Bring probabilities back to a scan's own grid, as labels: the likeliest of each voxel that beats the
    background (see `odds`).

    Args:
        found: `(classes, x, y, z)` on a working grid.
        affine: of the working grid.
        volume: the scan.
        slices: of the scan's last axis that are brought back at a time. None: all.

    Returns:
        `(X, Y, Z)` uint8.
    """
    labels = np.zeros(volume.shape, np.uint8)
    slices = slices or volume.shape[2]
    for first in range(0, volume.shape[2], slices):
        part = labels[:, :, first : first + slices]
        grid = volume.affine.copy()
        grid[:3, 3] += grid[:3, 2] * first
        best = np.zeros(part.shape, np.float32)
        for number, one in enumerate(found):
            here = resample(one, affine, part.shape, grid, fill=float(number == 0), edge=AROUND)
            here = here if number else here * odds(threshold)
            better = here > best
            part[better], best[better] = number, here[better]
    return labels
