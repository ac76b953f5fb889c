"""3D ViTs with timm's names, as MAE, DINO and many others save them.

Class token and registers take part in attention, so they are kept as extra tokens that contain their
position. LayerScale is multiplied into the layer before it. The axes of the image are assumed to be X, Y, Z;
norms have an epsilon of 1e-6, timm's.
"""

from __future__ import annotations

import re

import torch
from torch import Tensor

from ctssl.convert.families.moves import Move, Options, Translation, move_all, patch_of
from ctssl.convert.families.vits import BLOCK, sizes, split_positions

TITLE, OPTIONS = "3D ViT with the names of timm or MAE", ("heads", "grid", "norm_eps")
WINDOW_HU, SPACING_MM = None, None
TOKENS = ("cls_token", "reg_token")
OURS = re.compile(r"(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)")
SCALES = {"attn.proj": "ls1.gamma", "mlp.fc2": "ls2.gamma"}
LEFT_OUT = {
    r"head(_drop|_dist)?\.": "classification head",
    r"(decoder_|mask_token)": "decoder of the pretext",
}
REFUSED = {
    "fc_norm.weight": "its last norm comes after pooling all tokens, ours is applied to each token",
    "norm_pre.weight": "it has a norm before the first block",
    "blocks.0.attn.q_norm.weight": "it normalises queries and keys",
}


def looks(state: dict[str, Tensor]) -> bool:
    """Return whether these are keys of a ViT with timm's names."""
    return {"blocks.0.attn.qkv.weight", "patch_embed.proj.weight"} <= set(state) and "positions" not in state


def translate(state: dict[str, Tensor], options: Options) -> Translation:
    """Translate every key; the options must contain `heads`."""
    for key, why in REFUSED.items():
        if key in state:
            raise ValueError(f"not representable: {why} ({key})")
    hidden, positions, patch = (
        state.get(key) for key in ("blocks.0.mlp.fc1.weight", "pos_embed", "patch_embed.proj.weight")
    )
    if hidden is None or positions is None or patch is None:
        raise ValueError(
            "not representable: pos_embed or the first MLP is missing: another kind of positions, gated "
            "MLPs, or an incomplete file"
        )
    args = sizes(patch.shape[0], patch_of(patch), state, hidden, options)
    tokens = [state[name] for name in TOKENS if name in state]
    extra = torch.cat(tokens, 1) if tokens else None
    own, places = split_positions(positions, extra.shape[1] if extra is not None else 0, options)
    args |= {
        "grid": tuple(places.shape[:3]),
        "norm_eps": 1e-6 if options.norm_eps is None else options.norm_eps,
    }
    if extra is not None:
        args["extra"] = extra.shape[1]
        extra = extra if own is None else extra + own

    def place(key: str, tensor: Tensor) -> Move | None:
        if key == "pos_embed":
            return Move(
                "positions",
                places,
                "as a grid"
                + ("" if own is None else "; positions of the extra tokens added to those tokens"),
            )
        if key in TOKENS:
            first = key == next(name for name in TOKENS if name in state)
            return Move("extra", extra if first else None, "as extra tokens, which take part in attention")
        if key in ("norm.weight", "norm.bias", "patch_embed.proj.weight", "patch_embed.proj.bias"):
            return Move(key, tensor)
        return _place_in_block(key, tensor, state)

    return Translation("vit", args, move_all(state, place, LEFT_OUT))


def _place_in_block(key: str, tensor: Tensor, state: dict[str, Tensor]) -> Move | None:
    m = BLOCK.fullmatch(key)
    if m is None:
        return None
    if m[2] in SCALES.values():
        layer = next(name for name, scale in SCALES.items() if scale == m[2])
        return Move(f"blocks.{m[1]}.{layer}.weight", None, "LayerScale, multiplied into the layer before it")
    if not OURS.fullmatch(m[2]):
        return None
    gamma = state.get(f"blocks.{m[1]}.{SCALES.get(m[2].rpartition('.')[0], '-')}")
    if gamma is None:
        return Move(key, tensor)
    return Move(key, tensor * (gamma[:, None] if tensor.ndim == 2 else gamma), "multiplied by LayerScale")
