"""Segment how much of each of two crops a voxel holds (Volume Fusion, arXiv 2306.16925); encoder and head learn
together.
"""

from typing import ClassVar

import torch
from torch import Tensor

from ctssl.zoo import Preprocess
from training.data.axes import boxes_at, each
from training.data.draws import Draws
from training.data.views import Crops, Views, change
from training.pretext.segmenting import SegmentingTask

WEIGHTS = 4  # classes beside the background: the second crop has a weight of 1/4, 1/2, 3/4 or 1
COVERED = (0.2, 0.6)  # share of the crop that is mixed
SIDES = (4, 20)  # of the mixed boxes in voxels
BOXES = 200  # at most


class Fusion(SegmentingTask):
    """The weight of the second crop in each voxel; arguments as for `SegmentingTask`."""

    about = "Volume Fusion: segmentation of how two crops were mixed (arXiv 2306.16925)"
    labels: ClassVar = {k: f"weight {k}/{WEIGHTS}" for k in range(1, WEIGHTS + 1)}
    crops = Crops(2)

    @staticmethod
    def compose(
        crops: Tensor, spacing_mm: Tensor, *, how: Views, preprocess: Preprocess, draws: Draws
    ) -> list[Tensor]:
        """Return the mixed images `(B, S, S, S)` 0..1, and the weight of each voxel's second crop as a label."""
        below, above = crops.unbind(1)
        labels = boxes(crops.shape[-1], draws)
        image, labels = change(below + labels / WEIGHTS * (above - below), labels, how, draws)
        return [image, labels.to(image.dtype)]


def boxes(size: int, draws: Draws) -> Tensor:
    """Return labels `(B, size, size, size)`: boxes of random weights until enough is covered."""
    labels = torch.zeros(draws.count, size, size, size, device=draws.device)
    wanted = draws.uniform(*COVERED)
    for _ in range(BOXES):
        open_ = (labels > 0).flatten(1).float().mean(1) < wanted
        if not open_.any():
            break
        sides = SIDES[0] + draws.integers(min(SIDES[1], size) + 1 - SIDES[0], 3)
        corner = (draws.uniform(0.0, 1.0, 3) * (size - sides + 1)).long()
        box = boxes_at(corner, sides, size)
        weight = (1 + draws.integers(WEIGHTS)).float()
        labels = torch.where(box & each(open_), each(weight), labels)
    return labels
