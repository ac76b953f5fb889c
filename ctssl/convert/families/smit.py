"""SMIT: the Swin of arXiv 2205.10342 and its successors, in the containers in which that laboratory publishes
it.

Skips are each stage's output before merging, through its own norm; grids no longer than a window are padded
to it and shifted, where MONAI takes them whole; merging concatenates (H, W, D) 000, 100, 010, 001, 110, 011,
101, 111.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ctssl.convert.families.moves import Move, Options, Translation, move_all
from ctssl.convert.families.swins import place_in_stage, place_patch, sizes

TITLE, OPTIONS = "SMIT and its successors", ()
WINDOW_HU, SPACING_MM = (-500.0, 500.0), 2.0  # pretraining of arXiv 2405.08657; the first SMIT used -175..250
ORDER = ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1))
STAGE = re.compile(r"layers\.(\d+)\.(.+)")
LEFT_OUT = {
    r"mask_token$": "replaces masked tokens, in pretraining only",
    r"norm\.": "norm of the pretext heads; the maps do not use it",
    r"(head|head_group|head_cls)\.": "pretext head",
    r"(decoder\d|encoder\d+|out)\.": "decoder",
}


def looks(state: dict[str, Tensor]) -> bool:
    """Return whether these are keys of SMIT's Swin."""
    table = state.get("layers.0.blocks.0.attn.relative_position_bias_table")
    return table is not None and state["patch_embed.proj.weight"].ndim == 5


def translate(state: dict[str, Tensor], options: Options) -> Translation:
    """Translate every key; no options are needed."""
    numbered = [(m, state[m[0]]) for m in map(STAGE.fullmatch, state) if m]
    present = {int(m[1]) for m, _ in numbered}
    if present != set(range(len(present))):
        raise ValueError(f"stages are missing, it has only {sorted(present)}; the file is incomplete")
    stages = [{m[2]: tensor for m, tensor in numbered if int(m[1]) == i} for i in sorted(present)]
    args: dict[str, Any] = sizes(stages, state) | {"maps": "before", "small_grids": "pad"}

    def place(key: str, tensor: Tensor) -> Move | None:
        if m := STAGE.fullmatch(key):
            return place_in_stage(int(m[1]), m[2], tensor, window=args["window"], order=ORDER)
        if m := re.fullmatch(r"norm(\d)\.(weight|bias)", key):
            return Move(f"norms.{m[1]}.{m[2]}", tensor)
        return place_patch(key, tensor)

    return Translation("swin", args, move_all(state, place, LEFT_OUT))
