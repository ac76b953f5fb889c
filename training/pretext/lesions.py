"""Segment synthetic lesions that were pasted into unlabelled scans; encoder and head learn together."""

from typing import ClassVar

import numpy as np

from ctssl.sampling import crop_at
from ctssl.zoo import Preprocess
from training.data.lesions import paste
from training.data.views import Views, change, lung_start, rescale
from training.pretext.segmenting import SegmentingTask

COUNTS = (0.2, 0.6, 0.2)  # how often a crop gets no lesion, one, two
IN_LUNG = 0.7  # share of the crops that are looked for in the lung


class Lesions(SegmentingTask):
    """Lesions against everything else; arguments as for `SegmentingTask`."""

    labels: ClassVar = {1: "lesion"}

    @staticmethod
    def sample(
        scan: np.ndarray, *, crop: int, how: Views, preprocess: Preprocess, seed: int
    ) -> list[np.ndarray]:
        """Return the image `(S, S, S)` float32 0..1 with its lesions, and their mask float32 0 or 1."""
        rng = np.random.default_rng(seed)
        edge, spacing = how.draw_size(crop, preprocess.spacing_mm, rng)
        start = lung_start(scan, edge, preprocess, rng, wanted=rng.random() < IN_LUNG)
        image = rescale(crop_at(scan, start, edge).astype(np.float32), crop)
        low, high = preprocess.window_hu
        hu, mask = image * (high - low) + low, np.zeros(image.shape, bool)
        for _ in range(rng.choice(len(COUNTS), p=COUNTS)):
            hu, one = paste(hu, spacing, rng)
            mask |= one
        image, mask = change(np.clip((hu - low) / (high - low), 0, 1).astype(np.float32), mask, how, rng)
        return [image, mask.astype(np.float32)]
