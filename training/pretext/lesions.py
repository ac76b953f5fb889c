"""Segment synthetic lesions that were pasted into unlabelled scans; encoder and head learn together."""

from typing import Any

import numpy as np
import torch
from monai.losses.dice import DiceCELoss
from torch import Tensor, nn

from ctssl.heads.segmenter import Segmenter
from ctssl.sampling import crop_at
from ctssl.zoo import Preprocess
from training.data.lesions import paste
from training.data.views import Views, change, lung_start, rescale
from training.pretext.batch import Batch, seed_drop_path

COUNTS = (0.2, 0.6, 0.2)  # how often a crop gets no lesion, one, two
IN_LUNG = 0.7  # share of the crops that are looked for in the lung


class Lesions(nn.Module):
    """Dice and cross-entropy of each crop, at full resolution.

    Args:
        encoder: see `ctssl.encoders`.
        head: key of `ctssl.heads.HEADS`; it is kept beside the encoder.
        window: side of the sliding window of the segmenter that is kept, in voxels.

    Attributes:
        segmenter: encoder and head, as they are exported.
    """

    def __init__(self, encoder: Any, *, head: str = "light", window: int = 64) -> None:
        super().__init__()
        self.segmenter = Segmenter(encoder, head=head, labels={1: "lesion"}, window=window)
        self.criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=False)

    @property
    def encoder(self) -> Any:
        return self.segmenter.encoder

    @staticmethod
    def sample(
        scan: np.ndarray, *, crop: int, how: Views, preprocess: Preprocess, seed: int
    ) -> list[np.ndarray]:
        """Return the image `(S, S, S)` float32 0..1 with its lesions, and their mask float32 0 or 1."""
        rng = np.random.default_rng(seed)
        spacing = how.draw_spacing(preprocess.spacing_mm, rng)
        edge = max(2, round(crop * spacing / preprocess.spacing_mm))
        start = lung_start(scan, edge, preprocess, rng, wanted=rng.random() < IN_LUNG)
        image = rescale(crop_at(scan, start, edge).astype(np.float32), crop)
        low, high = preprocess.window_hu
        hu, mask = image * (high - low) + low, np.zeros(image.shape, bool)
        for _ in range(rng.choice(len(COUNTS), p=COUNTS)):
            hu, one = paste(hu, spacing, rng)
            mask |= one
        image = np.clip((hu - low) / (high - low), 0, 1).astype(np.float32)
        image, mask = change(image, mask, how, rng)
        return [image, mask.astype(np.float32)]

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image, mask = batch.views
        seed_drop_path(self.encoder, batch, salt=1000)
        logits = self.segmenter(image).float()
        loss = self.criterion(logits, mask)
        with torch.no_grad():
            found, truth = logits.argmax(1) > 0, mask[:, 0] > 0
            shared = (found & truth).flatten(1).sum(1)
            sizes = found.flatten(1).sum(1) + truth.flatten(1).sum(1)
            dsc = (2 * shared / sizes.clamp_min(1))[truth.flatten(1).any(1)]
        return {"loss": loss, "dsc": dsc.mean() if len(dsc) else torch.zeros((), device=loss.device)}
