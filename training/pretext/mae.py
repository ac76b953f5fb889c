"""Masked autoencoder (arXiv 2111.06377): the encoder sees only the visible tokens, a light decoder fills in
the rest.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ctssl.encoders.vit import Block, sine_positions
from training.pretext.batch import Batch, seed_drop_path
from training.pretext.masking import patches


class MaskedAutoencoder(nn.Module):
    """Squared error on the voxels of hidden tokens, normalised per token. ViT only: a Swin needs the whole
    grid.

    Args:
        encoder: a ViT.
        ratio: share of tokens that are hidden.
        width: channels of the decoder.
        depth: blocks of the decoder.
        heads: attention heads of the decoder.
    """

    about = "a masked autoencoder (arXiv 2111.06377)"

    def __init__(
        self, encoder: Any, *, ratio: float = 0.75, width: int = 96, depth: int = 2, heads: int = 3
    ) -> None:
        super().__init__()
        if not hasattr(encoder, "encode_tokens"):
            raise ValueError(
                "task mae needs an encoder that takes any subset of tokens, unlike "
                f"{type(encoder).__name__}; use the vit encoder, or the task mim"
            )
        self.encoder, self.ratio = encoder, ratio
        self.patch: int = encoder.patch_embed.patch
        self.enter = nn.Linear(encoder.channels[-1], width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.blocks = nn.Sequential(
            *(Block(width, heads=heads, mlp_ratio=4.0, qkv_bias=True, drop_path=0.0) for _ in range(depth))
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, self.patch**3)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        seed_drop_path(self.encoder, batch, salt=1000)
        grid_tokens = self.encoder.patch_embed(batch.image)
        grid = tuple(grid_tokens.shape[1:4])
        all_tokens = grid_tokens.flatten(1, 3)  # (B, N, C)
        count = all_tokens.shape[1]
        order = batch.random(count, salt=0).argsort(1)  # (B, N), hidden ones first
        hidden, visible = order.split([round(self.ratio * count), count - round(self.ratio * count)], 1)
        encoded = self.encoder.encode_tokens(
            gather_rows(all_tokens, visible), places(visible, grid), grid=grid
        )
        whole = self.mask_token.to(encoded.dtype).expand(len(batch), count, -1).clone()
        entered = self.enter(encoded)
        whole = whole.to(entered.dtype).scatter(1, visible[..., None].expand_as(entered), entered)
        whole = whole + sine_positions(grid, whole.shape[-1]).flatten(0, 2).to(whole)
        predicted = self.head(self.norm(self.blocks(whole)))
        errors = (
            gather_rows(predicted, hidden).float() - gather_rows(self.voxels(batch.image), hidden).float()
        ).square()
        return {"loss": errors.mean()}

    def voxels(self, image: Tensor) -> Tensor:
        """Return `(B, N, patch^3)` of `(B, 1, X, Y, Z)`: each token's voxels with mean 0 and deviation 1."""
        cells = patches(image[:, 0], self.patch).flatten(4).flatten(1, 3)
        deviation, mean = torch.std_mean(cells, -1, keepdim=True)
        return (cells - mean) / (deviation + 1e-3)


def gather_rows(rows: Tensor, index: Tensor) -> Tensor:
    """Return the rows `(B, N, C)` at `index` `(B, M)`."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def places(index: Tensor, grid: tuple[int, ...]) -> Tensor:
    return torch.stack(torch.unravel_index(index, grid), -1)  # (B, M) -> (B, M, 3)
