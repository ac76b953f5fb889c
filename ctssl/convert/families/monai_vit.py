"""MONAI's ViTs: `ViT` (alone or as `vit.` of `UNETR`), `ViTAutoEnc`, `MaskedAutoEncoderViT`.

The class token of a classifying or masked ViT takes part in attention, so it is kept as an extra token.
"""

from __future__ import annotations

import re

from torch import Tensor

from ctssl.convert.families.moves import Move, Options, Translation, cube_root, move_all, patch_of
from ctssl.convert.families.vits import BLOCK, depth_of, sizes, split_positions

TITLE, OPTIONS = "MONAI ViT, ViTAutoEnc, MaskedAutoEncoderViT or UNETR", ("heads", "grid")
WINDOW_HU, SPACING_MM = (-175.0, 250.0), 1.5  # MONAI's UNETR and ViT recipes on BTCV
PATCH = "patch_embedding.patch_embeddings."
NAMES = {"attn.out_proj": "attn.proj", "mlp.linear1": "mlp.fc1", "mlp.linear2": "mlp.fc2"}
OURS = re.compile(r"(norm[12]|attn\.(qkv|proj)|mlp\.fc[12])\.(weight|bias)")
LEFT_OUT = {
    r"blocks\.\d+\.(norm_cross_attn|cross_attn)\.": "cross attention, in every MONAI block but never called",
    r"classification_head\.": "classification head",
    r"(conv3d_transpose|decoder_|mask_tokens)": "decoder of the pretext",
}


def looks(state: dict[str, Tensor]) -> bool:
    """Return whether these are keys of a MONAI ViT."""
    return any(key.startswith(PATCH) for key in state)


def translate(state: dict[str, Tensor], options: Options) -> Translation:
    """Translate every key; the options must contain `heads`."""
    weight = state.get(f"{PATCH}weight")
    if weight is None:  # "perceptron": a linear layer on the voxels of a patch, equal to a convolution
        flat = state[f"{PATCH}1.weight"]
        side = cube_root(flat.shape[1], "the voxels of a patch")
        weight = flat.view(-1, 1, side, side, side)
    hidden = state.get("blocks.0.mlp.linear1.weight")
    positions = state.get("patch_embedding.position_embeddings")
    if hidden is None or positions is None:
        raise ValueError("the first block or the positions are missing; the file is incomplete")
    args = sizes(weight.shape[0], patch_of(weight), state, hidden, options)
    token = "cls_token" in state
    own, places = split_positions(positions, int(token), options)
    if own is not None:
        raise ValueError(
            "not representable: there is one position more than the grid has tokens, unlike in MONAI's ViTs"
        )
    args |= {"grid": tuple(places.shape[:3]), "extra": int(token)}

    def place(key: str, tensor: Tensor) -> Move | None:
        if key.startswith(PATCH):
            flat = key.startswith(f"{PATCH}1.") and tensor.ndim == 2
            how = "the linear layer written as a convolution" if flat else ""
            return Move(
                f"patch_embed.proj.{key.rpartition('.')[2]}",
                weight if key.endswith("weight") else tensor,
                how,
            )
        if key == "patch_embedding.position_embeddings":
            return Move("positions", places, "as a grid")
        if key == "cls_token":
            return Move("extra", tensor, "as an extra token, which takes part in attention")
        return _place_in_block(key, tensor, depth=depth_of(state))

    return Translation("vit", args, move_all(state, place, LEFT_OUT))


def _place_in_block(key: str, tensor: Tensor, *, depth: int) -> Move | None:
    if m := BLOCK.fullmatch(key):
        if int(m[1]) == depth and m[2] in (
            "weight",
            "bias",
        ):  # MaskedAutoEncoderViT: its last norm is a "block"
            return Move(f"norm.{m[2]}", tensor)
        for theirs, ours in NAMES.items():
            key = key.replace(theirs, ours)
        return Move(key, tensor) if OURS.fullmatch(key.split(".", 2)[2]) else None
    return Move(key, tensor) if key in ("norm.weight", "norm.bias") else None
