"""A network over a whole image in overlapping windows. It knows no model of ctssl: it calls what it is given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

MEMORY_GB = 8.0
MOST = 1_000_000  # windows of a scan; 64 voxels, half of them shared, make a few thousand


@dataclass(frozen=True)
class Windows:
    """How a whole scan goes through a network.

    Args:
        overlap: share of a window that the next one sees again, 0 to below 1.
        tta: average over all eight mirrorings (test-time augmentation), eight times the work.
        max_memory_gb: memory limit of the process in GB.
    """

    overlap: float = 0.5
    tta: bool = False
    max_memory_gb: float = MEMORY_GB

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}: use a share from 0 to below 1")


@torch.inference_mode()
def slide(
    network: Callable[[Tensor], Tensor],
    image: np.ndarray,
    side: int,
    *,
    classes: int,
    windows: Windows = Windows(),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "scan",
    progress: bool = False,
    skip_air: bool = True,
) -> np.ndarray:
    """Blend what a network says of overlapping windows into probabilities of the whole image.

    Windows follow one another along x, and what no later window touches is finished: only a slab is held in
    float32. Windows of nothing but air (0) cost nothing: the answer to one of them serves for all (`skip_air`).

    Args:
        network: `(1, 1, side, side, side)` -> logits `(1, classes, side, side, side)`.
        image: `(X, Y, Z)` float32, 0 to 1.
        side: voxels along each side of a window.
        device, dtype: of the network.
        name: of the scan, for messages.

    Returns:
        `(classes, X, Y, Z)` float16.

    Raises:
        ValueError: the network gives NaN or infinite values, or there would be more than `MOST` windows.
    """
    from tqdm import tqdm

    size = image.shape
    low = [(max(side - n, 0)) // 2 for n in size]
    image = np.pad(image, [(a, max(side - n, 0) - a) for n, a in zip(size, low, strict=True)])
    starts = [_spread(n, side, windows.overlap) for n in image.shape]
    count = math.prod(map(len, starts))
    if count > MOST:
        raise ValueError(
            f"{name}: {count} windows of {side} voxels, more than {MOST}; set `window` in the config.json of the "
            "model to the size of its training crops, or let windows overlap less"
        )
    bell = torch.from_numpy(gaussian(side))
    weight = bell[:, None, None] * bell[:, None] * bell
    totals = [_total(bell, places, n) for places, n in zip(starts, image.shape, strict=True)]
    answer_of, air = (mirrored(network) if windows.tta else network), None
    result = np.zeros((classes, *image.shape), np.float16)
    slab = torch.zeros(classes, side, *image.shape[1:])
    bar = tqdm(total=count, desc="segmenting", disable=not progress)
    for x, after in zip(starts[0], [*starts[0][1:], image.shape[0]], strict=True):
        for y, z in itertools.product(*starts[1:]):
            window = torch.from_numpy(image[x : x + side, y : y + side, z : z + side]).to(device, dtype)[
                None, None
            ]
            empty = skip_air and not window.any()
            answer = air if empty and air is not None else answer_of(window)[0].float().cpu()
            if not torch.isfinite(answer).all():
                raise ValueError(f"the model gives NaN or infinite values for {name}; its weights are no use")
            air = answer if empty else air
            slab[:, :, y : y + side, z : z + side] += answer * weight
            bar.update()
        done = after - x
        total = totals[0][x:after, None, None] * totals[1][:, None] * totals[2]
        result[:, x:after] = (slab[:, :done] / total).softmax(0).numpy()
        slab = torch.cat([slab[:, done:], torch.zeros(classes, done, *image.shape[1:])], 1)
    bar.close()
    inside = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
    return result[(slice(None), *inside)]


def _spread(size: int, side: int, overlap: float) -> list[int]:
    """Starts of windows that cover `size`, evenly, overlapping by at least `overlap`."""
    count = math.ceil((size - side) / max(1, round(side * (1 - overlap)))) + 1
    return [round(i * (size - side) / max(1, count - 1)) for i in range(count)]


def gaussian(side: int) -> np.ndarray:
    """Return the weights of the places along a window: 1 in the middle, at least 0.001; their products weight
    a window (nnU-Net's)."""
    places = (np.arange(side) - (side - 1) / 2) / (side / 8)
    return np.maximum(np.exp(-0.5 * places**2), 1e-3).astype(np.float32)


def _total(bell: Tensor, starts: list[int], size: int) -> Tensor:
    """Sum of the weights at each place along an axis: windows lie on a grid, so their sums are products of
    these."""
    total = torch.zeros(size)
    for start in starts:
        total[start : start + len(bell)] += bell
    return total


def mirrored(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a network whose logits are averaged over all eight mirrorings."""

    def averaged(window: Tensor) -> Tensor:
        total = torch.zeros(1, device=window.device)
        for count in range(4):
            for axes in itertools.combinations((2, 3, 4), count):
                total = total + network(window.flip(axes)).flip(axes)
        return total / 8

    return averaged
