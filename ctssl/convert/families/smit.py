"""SMIT: the Swin of arXiv 2205.10342 and its successors, in the containers in which that laboratory publishes
it.

Skips are each stage's output before merging, through a norm of its own; grids no longer than a window are
padded to it and shifted, where MONAI takes them whole; merging lines up (H, W, D) 000, 100, 010, 001, 110,
011, 101, 111.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ctssl.convert.families.moves import Move, Options, Translation, move_all
from ctssl.convert.families.swins import place_in_stage, place_patch, sizes

TITLE, OPTIONS = "SMIT and its successors", ()
WINDOW_HU, SPACING_MM = (
    (-500.0, 500.0),
    2.0,
)  # of the pretraining of arXiv 2405.08657; the first SMIT had -175..250
ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1))
STAGE = re.compile(r"layers\.(\d+)\.(.+)")
LEFT_OUT = {
    r"mask_token$": "stands in for masked tokens, in pretraining only",
    r"norm\.": "norm of the pretext heads; the maps do not pass it",
    r"(head|head_group|head_cls)\.": "pretext head",
    r"(decoder\d|encoder\d+|out)\.": "decoder",
}


def looks(state: dict[str, Tensor]) -> bool:
    table = state.get("layers.0.blocks.0.attn.relative_position_bias_table")
    return table is not None and state["patch_embed.proj.weight"].ndim == 5


def translate(state: dict[str, Tensor], options: Options) -> Translation:
    numbered = [(m, state[m[0]]) for m in map(STAGE.fullmatch, state) if m]
    found = {int(m[1]) for m, _ in numbered}
    if found != set(range(len(found))):
        raise ValueError(f"it has the stages {sorted(found)}: some are missing, the file is not whole")
    stages = [{m[2]: tensor for m, tensor in numbered if int(m[1]) == i} for i in sorted(found)]
    args: dict[str, Any] = sizes(stages, state) | {"maps": "before", "small_grids": "pad"}

    def place(key: str, tensor: Tensor) -> Move | None:
        if m := STAGE.fullmatch(key):
            return place_in_stage(int(m[1]), m[2], tensor, window=args["window"], order=ORDER)
        if m := re.fullmatch(r"norm(\d)\.(weight|bias)", key):
            return Move(f"norms.{m[1]}.{m[2]}", tensor)
        return place_patch(key, tensor)

    return Translation("swin", args, move_all(state, place, LEFT_OUT))
