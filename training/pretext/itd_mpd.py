"""Image and masked patch token self-distillation (ITD and MPD of SMIT; iBOT, arXiv 2111.07832)."""

from typing import Any

import torch
from torch import Tensor, nn

from training.pretext.batch import Batch
from training.pretext.distillation import Distillation
from training.pretext.masking import block_in_tokens, masked_maps


class ImageAndPatchTokens(nn.Module):
    """As `ImageTokens`, and each hidden token of the deepest map predicts the teacher's token there. Equal weights."""

    views = 2

    def __init__(self, encoder: Any, *, block: int = 16, ratio: float = 0.75, **distillation: Any) -> None:
        super().__init__()
        self.encoder, self.ratio = encoder, ratio
        self.block = block_in_tokens(block, encoder.patch_embed.patch)
        self.mask_token = nn.Parameter(torch.zeros(encoder.config["width"]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.distillation = Distillation(encoder, patch=True, **distillation)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        maps, _, coarse = masked_maps(self, batch)
        result = self.distillation(batch, maps, coarse)
        return {"loss": result["image"] + result["patch"], **result}

    def after_step(self, progress: float) -> None:
        self.distillation.after_step(self.encoder, progress)
