"""Masked image modelling: predict the voxels of hidden blocks (SimMIM, arXiv 2111.09886; MIP of SMIT, arXiv 2205.10342)."""

from typing import Any

import torch
from torch import Tensor, nn

from training.pretext.batch import Batch, seed_drop_path
from training.pretext.masking import block_in_tokens, block_mask, hide, spread


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
        self.block = block_in_tokens(block, encoder.patch_embed.patch)
        self.mask_token = nn.Parameter(torch.zeros(encoder.config["width"]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.head = VoxelHead(encoder)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        seed_drop_path(self.encoder, batch, salt=1000)
        tokens = self.encoder.patch_embed(batch.image)
        masked = block_mask(batch, tuple(tokens.shape[1:4]), block=self.block, ratio=self.ratio)
        deepest = self.encoder.encode(hide(tokens, masked, self.mask_token))[-1]
        return {"loss": self.head.loss(deepest, batch.image, masked)}


class VoxelHead(nn.Module):
    """A linear layer from each token of the deepest map to the voxels under it."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.stride: int = encoder.strides[-1]
        self.patch: int = encoder.patch_embed.patch
        self.linear = nn.Linear(encoder.channels[-1], self.stride**3)

    def forward(self, deepest: Tensor, size: tuple[int, ...]) -> Tensor:
        """`(B, C, x, y, z)` -> `(B, X, Y, Z)`, cut to `size`."""
        s = self.stride
        values = self.linear(deepest.permute(0, 2, 3, 4, 1))  # (B, x, y, z, s^3)
        values = values.unflatten(-1, (s, s, s)).permute(0, 1, 4, 2, 5, 3, 6)  # (B, x, s, y, s, z, s)
        voxels = values.flatten(5, 6).flatten(3, 4).flatten(1, 2)
        return voxels[:, : size[0], : size[1], : size[2]]

    def loss(self, deepest: Tensor, image: Tensor, masked: Tensor) -> Tensor:
        """Mean over samples of the mean |error| over the voxels of `masked` `(B, *tokens)`."""
        size = tuple(image.shape[2:])
        hidden = spread(masked, self.patch, size)
        error = (self(deepest, size).float() - image[:, 0].float()).abs() * hidden
        return (error.flatten(1).sum(1) / hidden.flatten(1).sum(1)).mean()
