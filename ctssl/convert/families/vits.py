"""What MONAI's and timm's ViT checkpoints share: sizes, positions, and what no file contains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from typing import Any

from torch import Tensor

from ctssl.convert.families.moves import Options, mlp_ratio

BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")


def sizes(
    width: int, patch: int, state: dict[str, Tensor], hidden: Tensor, options: Options
) -> dict[str, Any]:
    """Return the arguments of `ViT` that follow from the shapes and the user's options. `hidden`: the first
    MLP weight.
    """
    if options.heads is None:
        usual = f"; {width // 64} is usual for this width" if width % 64 == 0 else ""
        raise ValueError(
            f"the number of attention heads of a ViT is not in its weights; add --heads N{usual}"
        )
    depth = depth_of(state)
    return dict(
        width=width,
        depth=depth,
        heads=options.heads,
        patch=patch,
        mlp_ratio=mlp_ratio(hidden.shape[0], width),
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        maps=min(4, depth),
    )


def depth_of(keys: Iterable[str]) -> int:
    """Return the number of blocks that have an attention."""
    return len({m[1] for m in map(BLOCK.fullmatch, keys) if m and m[2].startswith("attn.")})


def split_positions(positions: Tensor, extra: int, options: Options) -> tuple[Tensor | None, Tensor]:
    """Split position embeddings `(1, N, C)` into those of the extra tokens, if any, and of the grid `(x, y,
    z, C)`.

    Raises `ValueError` unless the grid follows from the number of positions or from the options.
    """
    count, sides = positions.shape[1], range(1, 65)
    if options.grid:
        grids = [options.grid]
    else:
        grids = [(n, n, n) for n in sides if n**3 in (count, count - extra)]
    for grid in grids:
        if prod(grid) in (count, count - extra):
            own = count - prod(grid)
            return positions[:, :own] if own else None, positions[0, own:].unflatten(0, grid)
    mismatch = (
        f"--grid {' '.join(map(str, options.grid))} makes {prod(options.grid)}"
        if options.grid
        else "that is not a cube"
    )
    raise ValueError(
        f"there are positions for {count} tokens, at most {extra} of them outside the grid; {mismatch}: add "
        "--grid X Y Z, the tokens along each axis (image size / patch size)"
    )
