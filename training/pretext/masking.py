"""Which tokens a task hides. `masked` is True where a token is hidden from the encoder."""

from typing import Any

import torch
from torch import Tensor

from training.pretext.batch import Batch, seed_drop_path


def block_mask(batch: Batch, grid: tuple[int, ...], *, block: int, ratio: float, salt: int = 0) -> Tensor:
    """`(B, *grid)` bool: cubes of `block` tokens, a share `ratio` of them masked, drawn for every sample."""
    coarse = [-(-n // block) for n in grid]
    count = coarse[0] * coarse[1] * coarse[2]
    hidden = max(1, min(count - 1, round(ratio * count)))
    ranks = batch.random(count, salt=salt).argsort(1).argsort(1)
    masked = (ranks < hidden).view(len(batch), *coarse)
    return spread(masked, block, grid)


def spread(masked: Tensor, times: int, size: tuple[int, ...]) -> Tensor:
    """`(B, x, y, z)` with each cell repeated `times` along each axis, cut to `size`."""
    for axis, length in enumerate(size, start=1):
        masked = masked.repeat_interleave(times, axis).narrow(axis, 0, length)
    return masked


def hide(tokens: Tensor, masked: Tensor, mask_token: Tensor) -> Tensor:
    """`tokens` `(B, x, y, z, C)` with `mask_token` `(C,)` wherever `masked` `(B, x, y, z)`."""
    return torch.where(masked[..., None], mask_token.to(tokens.dtype), tokens)


def block_in_tokens(block: int, patch: int) -> int:
    """`block` voxels in tokens of `patch` voxels."""
    if block % patch:
        raise ValueError(f"block={block} must be a multiple of the encoder's patch, {patch} voxels")
    return block // patch


def masked_maps(task: Any, batch: Batch) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Each view through `task.encoder` with blocks hidden: deepest maps, masks on the token grid, masks on the maps' grid.

    `task` has `encoder`, `mask_token`, `block` (in tokens) and `ratio`.
    """
    maps, masks, coarse = [], [], []
    step = task.encoder.strides[-1] // task.encoder.patch_embed.patch  # tokens along a cell of the deepest map
    if task.block % step:
        raise ValueError(f"the block must be a multiple of the deepest map's stride, {task.encoder.strides[-1]} voxels")
    for i, view in enumerate(batch.views):
        seed_drop_path(task.encoder, batch, salt=1000 * (i + 1))
        tokens = task.encoder.patch_embed(view)
        masked = block_mask(batch, tuple(tokens.shape[1:4]), block=task.block, ratio=task.ratio, salt=i)
        maps.append(task.encoder.encode(hide(tokens, masked, task.mask_token))[-1])
        masks.append(masked)
        coarse.append(masked[:, ::step, ::step, ::step])
    return maps, masks, coarse
