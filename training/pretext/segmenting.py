"""What the tasks that segment share: an encoder with a head, both trained and both kept."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ctssl.heads.segmenter import Segmenter
from training.pretext.batch import Batch, seed_drop_path


class SegmentingTask(nn.Module):
    """Dice and cross-entropy of each crop, at full resolution. The first view is the image, the second its labels.

    Args:
        encoder: see `ctssl.encoders`.
        head: key of `ctssl.heads.HEADS`.

    Attributes:
        labels: name of each label.
        segmenter: encoder and head, as they are kept.
    """

    labels: ClassVar[dict[int, str]]

    def __init__(self, encoder: Any, *, head: str = "light") -> None:
        from monai.losses.dice import DiceCELoss  # seconds, which other tasks do not need

        super().__init__()
        self.segmenter = Segmenter(encoder, head=head, classes=1 + len(self.labels), labels=self.labels)
        self.criterion = DiceCELoss(include_background=False, to_onehot_y=True, softmax=True, batch=False)

    @property
    def encoder(self) -> Any:
        return self.segmenter.encoder

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        image, labels = batch.views
        seed_drop_path(self.encoder, batch, salt=1000)
        logits = self.segmenter(image).float()
        loss = self.criterion(logits, labels)
        with torch.no_grad():
            return {"loss": loss, "dsc": overlap(logits.argmax(1), labels[:, 0])}


def overlap(found: Tensor, truth: Tensor) -> Tensor:
    """Return the DSC of all labels as one, mean over the samples `(B, X, Y, Z)` that have any; 0 if none has."""
    found, truth = (found > 0).flatten(1), (truth > 0).flatten(1)
    dsc = 2 * (found & truth).sum(1) / (found.sum(1) + truth.sum(1)).clamp_min(1)
    some = truth.any(1)
    return (dsc * some).sum() / some.sum().clamp_min(1)
