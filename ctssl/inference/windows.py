"""A network over a whole scan in overlapping windows."""

from __future__ import annotations

import itertools
import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from ctssl.volume.volume import Volume

if TYPE_CHECKING:
    from ctssl.heads.segmenter import Segmenter
from ctssl.inference.features import prepared


@torch.inference_mode()
def windowed(
    model: Segmenter, volume: Volume, *, overlap: float, tta: bool, progress: bool, skip_air: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities `(classes, x, y, z)` (float16) on the model's own grid, and its affine, blended from
    overlapping windows.

    Windows follow one another along x, and what no later window touches is finished: only a slab is held in
    float32. Windows of nothing but air cost nothing: the network's answer to one of them serves for all
    (`skip_air`).
    """
    from tqdm import tqdm

    scan = prepared(model.encoder, volume)
    size, side = scan.shape, model.window
    low = [(max(side - n, 0)) // 2 for n in size]
    image = np.pad(scan.array, [(a, max(side - n, 0) - a) for n, a in zip(size, low, strict=True)])
    starts = [_spread(n, side, overlap) for n in image.shape]
    bell = torch.from_numpy(gaussian(side))
    weight = bell[:, None, None] * bell[:, None] * bell
    totals = [_total(bell, places, n) for places, n in zip(starts, image.shape, strict=True)]
    device = next(model.parameters()).device
    training, air = model.training, None
    model.eval()
    result = np.zeros((model.classes, *image.shape), np.float16)
    slab = torch.zeros(model.classes, side, *image.shape[1:])
    bar = tqdm(total=math.prod(map(len, starts)), desc="segmenting", disable=not progress)
    for x, after in zip(starts[0], [*starts[0][1:], image.shape[0]], strict=True):
        for y, z in itertools.product(*starts[1:]):
            window = torch.from_numpy(image[x : x + side, y : y + side, z : z + side]).to(device)[None, None]
            empty = skip_air and not window.any()
            answer = (
                air
                if empty and air is not None
                else (mirrored(model, window) if tta else model(window))[0].float().cpu()
            )
            if not torch.isfinite(answer).all():
                raise ValueError(
                    f"the model gives NaN or infinite values for {volume.name}; its weights are no use"
                )
            air = answer if empty else air
            slab[:, :, y : y + side, z : z + side] += answer * weight
            bar.update()
        done = after - x
        total = totals[0][x:after, None, None] * totals[1][:, None] * totals[2]
        result[:, x:after] = (slab[:, :done] / total).softmax(0).numpy()
        slab = torch.cat([slab[:, done:], torch.zeros(model.classes, done, *image.shape[1:])], 1)
    bar.close()
    model.train(training)
    inside = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
    return result[(slice(None), *inside)], scan.affine


def _spread(size: int, side: int, overlap: float) -> list[int]:
    """Starts of windows that cover `size`, evenly, overlapping by at least `overlap`."""
    if not 0 <= overlap < 1:
        raise ValueError(f"overlap={overlap}: a share from 0 to below 1")
    count = math.ceil((size - side) / max(1, round(side * (1 - overlap)))) + 1
    return [round(i * (size - side) / max(1, count - 1)) for i in range(count)]


def gaussian(side: int) -> np.ndarray:
    """Weights of the places along a window: 1 in the middle, at least 0.001; their products weight a window
    (nnU-Net's)."""
    places = (np.arange(side) - (side - 1) / 2) / (side / 8)
    return np.maximum(np.exp(-0.5 * places**2), 1e-3).astype(np.float32)


def _total(bell: Tensor, starts: list[int], size: int) -> Tensor:
    """Sum of the weights at each place along an axis: windows lie on a grid, so their sums are products of
    these."""
    total = torch.zeros(size)
    for start in starts:
        total[start : start + len(bell)] += bell
    return total


def mirrored(model: Segmenter, window: Tensor) -> Tensor:
    """Logits averaged over all eight mirrorings."""
    total = torch.zeros(1)
    for count in range(4):
        for axes in itertools.combinations((2, 3, 4), count):
            total = total.to(window.device) + model(window.flip(axes)).flip(axes)
    return total / 8
