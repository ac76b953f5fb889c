"""Segment synthetic lesions that were pasted into unlabelled scans; encoder and head learn together."""

from typing import ClassVar

import torch
from torch import Tensor

from ctssl.zoo import Preprocess
from training.data.draws import Draws
from training.data.lesions import paste
from training.data.views import Crops, Views, change
from training.pretext.segmenting import SegmentingTask

COUNTS = (0.2, 0.6, 0.2)  # how often a crop gets no lesion, one, two


class Lesions(SegmentingTask):
    """Lesions against everything else; arguments as for `SegmentingTask`."""

    about = "segmentation of synthetic lesions pasted into unlabelled scans (after arXiv 2303.14869)"
    labels: ClassVar = {1: "lesion"}
    crops = Crops(in_lung=0.7)

    @staticmethod
    def compose(
        crops: Tensor, spacing_mm: Tensor, *, how: Views, preprocess: Preprocess, draws: Draws
    ) -> list[Tensor]:
        """Return images `(B, S, S, S)` 0..1 with lesions, and their masks, 0 or 1."""
        low, high = preprocess.window_hu
        hu = crops[:, 0] * (high - low) + low
        mask = torch.zeros_like(hu, dtype=torch.bool)
        count = draws.choose(COUNTS)
        for number in range(1, len(COUNTS)):
            chosen = torch.nonzero(count >= number)[:, 0]
            if len(chosen):
                hu[chosen], one = paste(hu[chosen], spacing_mm[chosen], draws.some(chosen))
                mask[chosen] |= one
        image, mask = change(((hu - low) / (high - low)).clamp(0, 1), mask, how, draws)
        return [image, mask.to(image.dtype)]
