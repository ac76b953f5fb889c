"""Segment how much of each of two crops a voxel holds (Volume Fusion, arXiv 2306.16925); encoder and head learn
together.
"""

from typing import ClassVar

import numpy as np

from ctssl.sampling import crop_at, tissue_start
from ctssl.zoo import Preprocess
from training.data.views import Views, change, rescale
from training.pretext.segmenting import SegmentingTask

WEIGHTS = 4  # classes beside the background: the second crop has a weight of 1/4, 1/2, 3/4 or 1
COVERED = (0.2, 0.6)  # share of the crop that is mixed
SIDES = (4, 20)  # of the mixed boxes in voxels


class Fusion(SegmentingTask):
    """The weight of the second crop in each voxel; arguments as for `SegmentingTask`."""

    labels: ClassVar = {k: f"weight {k}/{WEIGHTS}" for k in range(1, WEIGHTS + 1)}

    @staticmethod
    def sample(
        scan: np.ndarray, *, crop: int, how: Views, preprocess: Preprocess, seed: int
    ) -> list[np.ndarray]:
        """Return the mixed image `(S, S, S)` float32 0..1, and the weight of each voxel's second crop as a label."""
        rng = np.random.default_rng(seed)
        edge, _ = how.draw_size(crop, preprocess.spacing_mm, rng)
        below, above = (
            rescale(crop_at(scan, tissue_start(scan, edge, rng), edge).astype(np.float32), crop)
            for _ in range(2)
        )
        labels = boxes(crop, rng)
        image, labels = change(below + labels / np.float32(WEIGHTS) * (above - below), labels, how, rng)
        return [image, labels.astype(np.float32)]


def boxes(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return labels `(size, size, size)`: boxes of random weights until enough is covered."""
    labels, wanted = np.zeros((size,) * 3, np.uint8), rng.uniform(*COVERED)
    while (labels > 0).mean() < wanted:
        sides = rng.integers(SIDES[0], min(SIDES[1], size) + 1, 3)
        corner = rng.integers(0, size - sides + 1)
        box = tuple(slice(c, c + s) for c, s in zip(corner, sides, strict=True))
        labels[box] = rng.integers(1, WEIGHTS + 1)
    return labels
