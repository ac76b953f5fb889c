"""SMIT (arXiv 2205.10342), the paper's method: masked image prediction with image and masked patch token
self-distillation.
"""

from typing import Any

import torch
from torch import Tensor

from training.pretext.batch import Batch
from training.pretext.distillation import DistillingTask
from training.pretext.mim import VoxelHead


class Smit(DistillingTask):
    """Weights as published: prediction 1, image tokens 0.1, patch tokens 0.1. All three use the student's
    masked views.
    """

    about = "SMIT: masked image prediction with image and patch token self-distillation (arXiv 2205.10342)"

    def __init__(
        self, encoder: Any, *, image_weight: float = 0.1, patch_weight: float = 0.1, **distillation: Any
    ) -> None:
        super().__init__(encoder, **distillation)
        self.image_weight, self.patch_weight = image_weight, patch_weight
        self.head = VoxelHead(encoder)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        maps, masks, result = self.distil(batch)
        losses = [
            self.head.loss(m, view, mask) for m, view, mask in zip(maps, batch.views, masks, strict=True)
        ]
        voxels = torch.stack(losses).mean()
        loss = voxels + self.image_weight * result["image"] + self.patch_weight * result["patch"]
        return {"loss": loss, "voxels": voxels, **result}
