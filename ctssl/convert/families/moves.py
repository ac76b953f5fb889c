"""What becomes of the keys of a checkpoint: the words in which every family answers."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Move(NamedTuple):
    """Where a key goes (`to` None: left out), with which values, and how or why, in words ("" for just a new
    name).

    `tensor` None beside a `to`: the key is part of the values that another one brings there.
    """

    to: str | None
    tensor: Tensor | None
    how: str = ""


class Translation(NamedTuple):
    """An encoder of `ENCODERS` with the arguments that build it, and a `Move` for every key of the source."""

    encoder: str
    args: dict[str, Any]
    moves: dict[str, Move]


class Options(NamedTuple):
    """What a user has to tell because no file does; None: not told.

    `merging`: "1.4", "1.5" or "v2", see `monai_swinunetr`. `heads`: attention heads of a ViT. `grid`: its
    tokens along each axis. `norm_eps`: of its layer norms.
    """

    merging: str | None = None
    heads: int | None = None
    grid: tuple[int, int, int] | None = None
    norm_eps: float | None = None


def move_all(
    state: dict[str, Tensor], place: Callable[[str, Tensor], Move | None], left_out: dict[str, str]
) -> dict[str, Move]:
    """`place(key, tensor)` for every key; then `left_out`, patterns of keys that do not change the features,
    and why.

    Raises `ValueError` when neither knows a key: what it stands for could be part of the computation.
    """
    moves: dict[str, Move] = {}
    for key, tensor in state.items():
        move = place(key, tensor)
        if move is None:
            why = next((words for pattern, words in left_out.items() if re.match(pattern, key)), None)
            move = None if why is None else Move(None, None, why)
        if move is None:
            raise ValueError(
                f"not representable: {key} {tuple(tensor.shape)} is part of the encoder, but our encoders have "
                "nothing that computes it"
            )
        moves[key] = move
    return moves


def cube_root(number: int, what: str) -> int:
    """The side of a cube of `number` cells."""
    side = round(number ** (1 / 3))
    if side**3 != number:
        raise ValueError(
            f"not representable: {what} ({number}) is no cube; our encoders have the same size along each axis"
        )
    return side


def mlp_ratio(hidden: int, width: int) -> float:
    """The ratio from which our encoders make `hidden` again; `hidden / width` may end a rounding below."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def patch_of(weight: Tensor) -> int:
    """Voxels along each side of a token, from the weight `(C, 1, p, p, p)` of the patch embedding."""
    if weight.ndim != 5:
        raise ValueError(
            f"not representable: the patch embedding {tuple(weight.shape)} is that of 2D images; ours are 3D"
        )
    if weight.shape[1] != 1:
        raise ValueError(
            f"not representable: the encoder takes {weight.shape[1]} channels, ours take one (CT)"
        )
    if len(set(weight.shape[2:])) > 1:
        raise ValueError(f"not representable: patches of {tuple(weight.shape[2:])} voxels; ours are cubes")
    return weight.shape[2]
