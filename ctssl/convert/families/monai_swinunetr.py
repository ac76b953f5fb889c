"""MONAI's Swin: `SwinUNETR` checkpoints (the encoder is `swinViT.`) and bare `SwinTransformer`s, with or
without `use_v2`.

Skips are the patch embedding and each merged output, through a norm without weights. The order of merging
depends on the MONAI version that trained the weights: 1.5 changed it in place, no key or shape shows it, and
the wrong order computes something else.
"""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from ctssl.convert.families.moves import Move, Options, Translation, move_all
from ctssl.convert.families.swins import place_in_stage, place_patch, sizes
from ctssl.encoders.swin_blocks import MERGE_ORDERS

TITLE, OPTIONS = "MONAI SwinUNETR or SwinTransformer, use_v2 too (VoCo, SuPreM)", ("merging",)
WINDOW_HU, SPACING_MM = (-175.0, 250.0), 1.5  # MONAI's BTCV recipe; VoCo and SuPreM use the same
MERGINGS: dict[str, tuple[tuple[int, int, int], ...] | None] = {
    "1.4": None,  # unchanged, with merge_order "monai-1.4"
    "1.5": MERGE_ORDERS["each"],
    "v2": tuple((i, j, k) for i in (0, 1) for j in (0, 1) for k in (0, 1)),
}
STAGE = re.compile(
    r"layers(\d)\.0\.(?:0\.)?(.+)"
)  # an additional 0 in the disruptive autoencoders' checkpoint
CONV = re.compile(r"layers(\d)c\.0\.layer\.(conv[12])\.conv\.weight")
LEFT_OUT = {
    r"mask_token$": "replaces masked tokens, in pretraining only",
    r"norm\.(weight|bias)$": "norm of the pretext heads; MONAI's maps do not use it",
    r"(rotation|contrastive)_(head|pre)\.|conv\.\d|decoder": "pretext head",
}


def looks(state: dict[str, Tensor]) -> bool:
    """Return whether these are keys of a MONAI `SwinTransformer`."""
    return any(STAGE.fullmatch(key) and "mlp.linear1" in key for key in state)


def translate(state: dict[str, Tensor], options: Options) -> Translation:
    """Translate every key; the options must contain `merging`."""
    if options.merging not in MERGINGS:
        raise ValueError(
            "the file does not say which MONAI version trained it, and 1.5 changed the result: add "
            "--merging 1.4 (any MONAI before 1.5: most published checkpoints), --merging 1.5 (since "
            "then) or --merging v2 (built with downsample='mergingv2')"
        )
    numbered = [(m, state[m[0]]) for m in map(STAGE.fullmatch, state) if m]
    count = max(int(m[1]) for m, _ in numbered)
    stages = [{m[2]: tensor for m, tensor in numbered if int(m[1]) == i + 1} for i in range(count)]
    args: dict[str, Any] = sizes(stages, state) | {"maps": "after", "sliced_bias": True}
    args["convs"] = any(map(CONV.fullmatch, state))
    if options.merging == "1.4":
        args["merge_order"] = "monai-1.4"

    def place(key: str, tensor: Tensor) -> Move | None:
        if m := CONV.fullmatch(key):
            return Move(f"stages.{int(m[1]) - 1}.conv.{m[2]}.weight", tensor)
        if m := STAGE.fullmatch(key):
            order = MERGINGS[str(options.merging)]
            return place_in_stage(int(m[1]) - 1, m[2], tensor, window=args["window"], order=order)
        return place_patch(key, tensor)

    return Translation("swin", args, move_all(state, place, LEFT_OUT))
