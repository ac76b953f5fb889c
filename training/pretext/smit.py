"""SMIT (arXiv 2205.10342), the paper's method: masked image prediction with image and masked patch token self-distillation."""

from typing import Any

import torch
from torch import Tensor, nn

from training.pretext.batch import Batch
from training.pretext.distillation import Distillation
from training.pretext.masking import block_in_tokens, masked_maps
from training.pretext.mim import VoxelHead


class Smit(nn.Module):
    """Weights as published: prediction 1, image tokens 0.1, patch tokens 0.1. The student's masked views serve all three."""

    views = 2

    def __init__(self, encoder: Any, *, block: int = 16, ratio: float = 0.75, image_weight: float = 0.1,
                 patch_weight: float = 0.1, **distillation: Any) -> None:  # fmt: skip
        super().__init__()
        self.encoder, self.ratio = encoder, ratio
        self.image_weight, self.patch_weight = image_weight, patch_weight
        self.block = block_in_tokens(block, encoder.patch_embed.patch)
        self.mask_token = nn.Parameter(torch.zeros(encoder.config["width"]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = VoxelHead(encoder)
        self.distillation = Distillation(encoder, patch=True, **distillation)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        maps, masks, coarse = masked_maps(self, batch)
        result = self.distillation(batch, maps, coarse)
        losses = [self.head.loss(m, view, mask) for m, view, mask in zip(maps, batch.views, masks, strict=True)]
        voxels = torch.stack(losses).mean()
        loss = voxels + self.image_weight * result["image"] + self.patch_weight * result["patch"]
        return {"loss": loss, "voxels": voxels, **result}

    def after_step(self, progress: float) -> None:
        self.distillation.after_step(self.encoder, progress)
