"""Which tokens a task hides. `masked` is True where a token is hidden from the encoder."""

import torch
from torch import Tensor


def block_mask(batch: int, grid: tuple[int, ...], *, block: int, ratio: float, device: torch.device) -> Tensor:
    """`(B, *grid)` bool: cubes of `block` tokens, a share `ratio` of them masked, drawn for every sample."""
    coarse = [-(-n // block) for n in grid]
    count = coarse[0] * coarse[1] * coarse[2]
    hidden = max(1, min(count - 1, round(ratio * count)))
    ranks = torch.rand(batch, count, device=device).argsort(1).argsort(1)
    masked = (ranks < hidden).view(batch, *coarse)
    for axis, size in enumerate(grid, start=1):
        masked = masked.repeat_interleave(block, axis).narrow(axis, 0, size)
    return masked


def hide(tokens: Tensor, masked: Tensor, mask_token: Tensor) -> Tensor:
    """`tokens` `(B, x, y, z, C)` with `mask_token` `(C,)` wherever `masked` `(B, x, y, z)`."""
    return torch.where(masked[..., None], mask_token.to(tokens.dtype), tokens)
