"""What becomes of each key of a checkpoint: the records that every family returns."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Move(NamedTuple):
    """What becomes of one key.

    Attributes:
        to: the new key; None if it is left out.
        tensor: the values; None next to a `to` if the key is part of the values of another one.
        how: what was changed, or why it was left out; "" for a mere new name.
    """

    to: str | None
    tensor: Tensor | None
    how: str = ""


class Translation(NamedTuple):
    """An encoder of `ENCODERS`, the arguments that build it, and a `Move` for every key of the source."""

    encoder: str
    args: dict[str, Any]
    moves: dict[str, Move]


class Options(NamedTuple):
    """What the user has to specify because no file contains it.

    Attributes:
        merging: "1.4", "1.5" or "v2", see `monai_swinunetr`.
        heads: attention heads of a ViT.
        grid: tokens of a ViT along each axis.
        norm_eps: epsilon of its layer norms.
    """

    merging: str | None = None
    heads: int | None = None
    grid: tuple[int, int, int] | None = None
    norm_eps: float | None = None


def move_all(
    state: dict[str, Tensor], place: Callable[[str, Tensor], Move | None], left_out: dict[str, str]
) -> dict[str, Move]:
    """Return the move of every key.

    Args:
        state: tensors by key.
        place: returns the move of a key, None if it does not know it.
        left_out: patterns of keys that do not change the features, and why.

    Raises:
        ValueError: neither knows a key, which could be part of the computation.
    """
    moves: dict[str, Move] = {}
    for key, tensor in state.items():
        move = place(key, tensor)
        if move is None:
            why = next((words for pattern, words in left_out.items() if re.match(pattern, key)), None)
            move = None if why is None else Move(None, None, why)
        if move is None:
            raise ValueError(
                f"not representable: {key} {tuple(tensor.shape)} is part of the encoder, but our "
                "encoders have no such layer"
            )
        moves[key] = move
    return moves


def cube_root(number: int, what: str) -> int:
    """Return the side of a cube of `number` cells. Raises `ValueError`, naming `what`, if it is not a cube.

    >>> cube_root(343, "the window")
    7
    """
    side = round(number ** (1 / 3))
    if side**3 != number:
        raise ValueError(
            f"not representable: {what} ({number}) is not a cube; our encoders have the same size "
            "along each axis"
        )
    return side


def mlp_ratio(hidden: int, width: int) -> float:
    """Return the ratio from which our encoders compute `hidden` again; `hidden / width` can be rounded too
    low.
    """
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def patch_of(weight: Tensor) -> int:
    """Return the voxels along each side of a token, from the weight `(C, 1, p, p, p)` of the patch embedding.

    Raises `ValueError` unless it is 3D, cubic and of one channel.
    """
    if weight.ndim != 5:
        raise ValueError(
            f"not representable: the patch embedding {tuple(weight.shape)} is for 2D images; ours are 3D"
        )
    if weight.shape[1] != 1:
        raise ValueError(
            f"not representable: the encoder takes {weight.shape[1]} channels; ours take one (CT)"
        )
    if len(set(weight.shape[2:])) > 1:
        raise ValueError(f"not representable: patches of {tuple(weight.shape[2:])} voxels; ours are cubes")
    return weight.shape[2]
