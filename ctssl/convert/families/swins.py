"""What SMIT's and MONAI's Swin checkpoints share: sizes, block keys, and the order of patch merging."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ctssl.convert.families.moves import Move, cube_root, mlp_ratio, patch_of
from ctssl.encoders.swin_blocks import MERGE_ORDERS
from ctssl.encoders.windows import relative_index

Offsets = tuple[tuple[int, int, int], ...]
NAMES = {
    "attn.relative_position_bias_table": "attn.bias_table",
    "mlp.linear1": "mlp.fc1",
    "mlp.linear2": "mlp.fc2",
}
BLOCK = re.compile(
    r"blocks\.\d+\.((norm[12]|attn\.(qkv|proj)|mlp\.(fc|linear)[12])\.(weight|bias)"
    r"|attn\.relative_position_bias_table)"
)
INDEX = re.compile(r"blocks\.\d+\.attn\.relative_position_index")
PATCH = re.compile(r"patch_embed\.(proj|norm)\.(weight|bias)")


def sizes(stages: list[dict[str, Tensor]], state: dict[str, Tensor]) -> dict[str, Any]:
    """Return the arguments of `Swin` that follow from the shapes; `stages` are the keys of each stage without
    its prefix.
    """
    patch = state["patch_embed.proj.weight"]
    width, depths, heads = patch.shape[0], [], []
    for number, stage in enumerate(stages):
        blocks = {int(key.split(".")[1]) for key in stage if key.startswith("blocks.")}
        if not blocks or blocks != set(range(len(blocks))):
            raise ValueError(
                f"blocks of stage {number + 1} are missing, it has only {sorted(blocks)}; the file is "
                "incomplete"
            )
        table = stage.get("blocks.0.attn.relative_position_bias_table")
        if table is None:
            raise ValueError(
                f"stage {number + 1} has no relative_position_bias_table; the file is incomplete"
            )
        depths.append(len(blocks))
        heads.append(table.shape[1])
        rows = table.shape[0]
    first = stages[0]
    hidden = first.get("blocks.0.mlp.fc1.weight", first.get("blocks.0.mlp.linear1.weight"))
    if hidden is None:
        raise ValueError("the first block has no MLP; the file is incomplete")
    return dict(
        width=width,
        depths=tuple(depths),
        heads=tuple(heads),
        patch=patch_of(patch),
        mlp_ratio=mlp_ratio(hidden.shape[0], width),
        window=(cube_root(rows, "the position bias table of a window") + 1) // 2,
        qkv_bias="blocks.0.attn.qkv.bias" in first,
        patch_norm="patch_embed.norm.weight" in state,
        merge_last="downsample.reduction.weight" in stages[-1],
    )


def place_patch(key: str, tensor: Tensor) -> Move | None:
    """Place a key of the patch embedding, which has the same names everywhere."""
    return Move(key, tensor) if PATCH.fullmatch(key) else None


def place_in_stage(
    number: int, key: str, tensor: Tensor, *, window: int, order: Offsets | None
) -> Move | None:
    """Place a key of stage `number` (from 0); returns None for an unknown one.

    Args:
        number: the stage.
        key: the key without the stage's prefix.
        tensor: its values.
        window: tokens along each side of a window.
        order: the source's order of merging; None: keep it.
    """
    if BLOCK.fullmatch(key):
        for theirs, ours in NAMES.items():
            key = key.replace(theirs, ours)
        return Move(f"stages.{number}.{key}", tensor)
    if INDEX.fullmatch(key):
        if len(tensor) != window**3 or not torch.equal(
            tensor, relative_index((window,) * 3, window, False, tensor.device)
        ):
            raise ValueError(
                f"not representable: {key} of stage {number + 1} numbers the relative positions differently"
            )
        return Move(None, None, "an index derived from the window; equal to ours")
    if key in ("downsample.norm.weight", "downsample.norm.bias", "downsample.reduction.weight"):
        to = f"stages.{number}.merge{key.removeprefix('downsample')}"
        places = MERGE_ORDERS["each"]
        if order is None or order == places:
            return Move(to, tensor)
        chunks = [order.index(place) for place in places]
        return Move(to, reorder(tensor, chunks), f"its 8 chunks of channels reordered {chunks}")
    return None


def reorder(tensor: Tensor, chunks: list[int]) -> Tensor:
    """Reorder the eight neighbours in the last dimension `(..., 8*C)` of a merging's weight."""
    return tensor.unflatten(-1, (8, -1))[..., chunks, :].flatten(-2)
