"""Choose the tokens that a task hides. `masked` is True where a token is hidden from the encoder."""

from typing import Any

import torch
from torch import Tensor, nn

from training.pretext.batch import Batch, seed_drop_path


def block_mask(batch: Batch, grid: tuple[int, ...], *, block: int, ratio: float, salt: int = 0) -> Tensor:
    """Draw a mask `(B, *grid)` for every sample: cubes of `block` tokens, a share `ratio` of them masked."""
    coarse = [-(-n // block) for n in grid]
    count = coarse[0] * coarse[1] * coarse[2]
    hidden = max(1, min(count - 1, round(ratio * count)))
    ranks = batch.random(count, salt=salt).argsort(1).argsort(1)
    masked = (ranks < hidden).view(len(batch), *coarse)
    return spread(masked, block, grid)


def spread(masked: Tensor, times: int, size: tuple[int, ...]) -> Tensor:
    """Repeat each cell of `(B, x, y, z)` `times` along each axis, cut to `size`."""
    for axis, length in enumerate(size, start=1):
        masked = masked.repeat_interleave(times, axis).narrow(axis, 0, length)
    return masked


def hide(tokens: Tensor, masked: Tensor, mask_token: Tensor) -> Tensor:
    """Replace tokens `(B, x, y, z, C)` by `mask_token` `(C,)` wherever `masked` `(B, x, y, z)` is True."""
    return torch.where(masked[..., None], mask_token.to(tokens.dtype), tokens)


def patches(volume: Tensor, size: int) -> Tensor:
    """Return the voxels of each cube: `(B, X, Y, Z)` -> `(B, x, y, z, size, size, size)`, padded with zeros
    (False) at the far border.
    """
    pads = [(-n) % size for n in volume.shape[1:]]
    if any(pads):
        volume = nn.functional.pad(volume, (0, pads[2], 0, pads[1], 0, pads[0]))
    return volume.unfold(1, size, size).unfold(2, size, size).unfold(3, size, size)


class MaskedTask(nn.Module):
    """Base of the tasks that replace cubes of tokens by a learnt mask token.

    Args:
        encoder: see `ctssl.encoders`.
        block: side of a hidden cube in voxels; a multiple of the encoder's patch.
        ratio: share of cubes that are hidden.
    """

    def __init__(self, encoder: Any, *, block: int = 16, ratio: float = 0.75) -> None:
        super().__init__()
        patch = encoder.patch_embed.patch
        if block % patch:
            raise ValueError(
                f"invalid block={block} (must be a multiple of the encoder's patch, {patch} voxels)"
            )
        self.encoder, self.ratio = encoder, ratio
        self.block = block // patch  # in tokens
        self.mask_token = nn.Parameter(torch.zeros(encoder.config["width"]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def encode_masked(self, batch: Batch, number: int = 0) -> tuple[Tensor, Tensor]:
        """Encode view `number` with hidden cubes: returns the deepest map `(B, C, x, y, z)` and the mask on
        the token grid.
        """
        seed_drop_path(self.encoder, batch, salt=1000 * (number + 1))
        tokens = self.encoder.patch_embed(batch.views[number])
        masked = block_mask(batch, tuple(tokens.shape[1:4]), block=self.block, ratio=self.ratio, salt=number)
        return self.encoder.encode(hide(tokens, masked, self.mask_token))[-1], masked
