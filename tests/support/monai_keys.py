"""The stated key maps from MONAI's Swin and ViT to ours."""

import re

MONAI_SWIN = dict(
    width=48,
    depths=(2, 2, 2, 2),
    heads=(3, 6, 12, 24),
    window=7,
    patch=2,
    patch_norm=False,
    maps="after",
    sliced_bias=True,
)
RENAMED = {
    "relative_position_bias_table": "bias_table",
    "linear1": "fc1",
    "linear2": "fc2",
    "downsample": "merge",
}


def our_swin_state(state: dict) -> dict:
    """A `monai SwinTransformer` state dict with our names; the position index is computed, not stored."""
    return {
        swin_key(key): value for key, value in state.items() if not key.endswith("relative_position_index")
    }


def swin_key(key: str) -> str:
    key = re.sub(r"^layers(\d)\.0\.", lambda found: f"stages.{int(found[1]) - 1}.", key)
    for theirs, ours in RENAMED.items():
        key = key.replace(theirs, ours)
    return key


DECODER_KEYS = {
    "bottom": "encoder10.",
    "out": "out.conv.conv.",
    "skips.0": "encoder1.",
    **{f"skips.{i}.0": f"encoder{i + 1}." for i in (1, 2, 3)},
    **{f"ups.{i}": f"decoder{i + 1}." for i in range(5)},
}


def our_decoder_state(state: dict) -> dict:
    """The decoder of a `monai SwinUNETR` state dict, for our head `swin-unetr`."""
    return {
        f"{ours}.{key.removeprefix(theirs)}": value
        for ours, theirs in DECODER_KEYS.items()
        for key, value in state.items()
        if key.startswith(theirs)
    }


VIT_KEYS = {
    "patch_embedding.position_embeddings": "positions",
    "patch_embedding.patch_embeddings": "patch_embed.proj",
    ".out_proj.": ".proj.",
    ".linear1.": ".fc1.",
    ".linear2.": ".fc2.",
}


def our_vit_state(state: dict, *, grid: tuple[int, ...]) -> dict:
    """A state dict of `monai.networks.nets.ViT` (proj_type="conv") as ours; its cross attention norms serve nothing."""
    ours = {}
    for key, value in state.items():
        if "cross_attn" in key:
            continue
        for old, new in VIT_KEYS.items():
            key = key.replace(old, new)
        ours[key] = value.view(*grid, -1) if key == "positions" else value
    return ours
