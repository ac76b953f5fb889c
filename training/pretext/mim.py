"""Masked image modelling: predict the voxels of hidden blocks (SimMIM, arXiv 2111.09886; MIP of SMIT, arXiv 2205.10342)."""

from typing import Any

import torch
from torch import Tensor, nn

from training.pretext.masking import block_mask, hide


class MaskedImageModelling(nn.Module):
    """L1 on masked voxels only, from a linear head on the encoder's deepest map.

    Args:
        encoder: see `ctssl.encoders`.
        block: voxels along each side of a hidden cube.
        ratio: share of cubes that is hidden.
    """

    def __init__(self, encoder: Any, *, block: int = 16, ratio: float = 0.75) -> None:
        super().__init__()
        self.encoder, self.ratio = encoder, ratio
        self.patch: int = encoder.patch_embed.patch
        if block % self.patch:
            raise ValueError(f"block={block} must be a multiple of the encoder's patch, {self.patch} voxels")
        self.block = block // self.patch  # in tokens
        self.stride: int = encoder.strides[-1]
        self.mask_token = nn.Parameter(torch.zeros(encoder.config["width"]))
        self.head = nn.Linear(encoder.channels[-1], self.stride**3)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        tokens = self.encoder.patch_embed(image)
        masked = block_mask(
            len(image), tuple(tokens.shape[1:4]), block=self.block, ratio=self.ratio, device=image.device
        )
        deepest = self.encoder.encode(hide(tokens, masked, self.mask_token))[-1]
        predicted = self.to_voxels(self.head(deepest.permute(0, 2, 3, 4, 1)), tuple(image.shape[2:]))
        hidden = masked
        for axis, size in enumerate(image.shape[2:], start=1):
            hidden = hidden.repeat_interleave(self.patch, axis).narrow(axis, 0, size)
        error = (predicted.float() - image[:, 0].float()).abs()
        return {"loss": (error * hidden).sum() / hidden.sum()}

    def to_voxels(self, values: Tensor, size: tuple[int, ...]) -> Tensor:
        """`(B, x, y, z, S^3)` -> `(B, X, Y, Z)`, cut to `size`."""
        s = self.stride
        values = values.unflatten(-1, (s, s, s)).permute(0, 1, 4, 2, 5, 3, 6)  # (B, x, S, y, S, z, S)
        voxels = values.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return voxels[:, : size[0], : size[1], : size[2]]
