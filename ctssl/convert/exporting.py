"""Encoders for places without ctssl: `torch.export` programs and ONNX files, for images of one size."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctssl.encoders import ENCODERS
from ctssl.files.atomic import write_whole


def to_program(encoder: nn.Module, *, size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The encoder as a program for images `(1, 1, *size)`; `program.module()(x)` gives its maps, finest
    first.

    The size is fixed because the windows of a Swin are laid out for it. Nothing of ctssl is needed to run it.
    """
    x, trains = torch.zeros(1, 1, *size), encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(x)  # lays the windows out: the program takes them as constants
            return torch.export.export(encoder, (x,))
    finally:
        encoder.train(trains)


def to_onnx(
    encoder: nn.Module, path: str | os.PathLike, *, size: tuple[int, int, int], overwrite: bool = False
) -> Path:
    """Write an ONNX file: input `image` `(1, 1, *size)`, outputs `map0`, `map1`, ..., finest first.

    Raises `ImportError` without the extra `ctssl[export]`.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"{path} exists; choose another name, or overwrite it on purpose (overwrite=True)"
        )
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}; ONNX needs more packages: pip install 'ctssl[export]'") from error
    names = [f"map{i}" for i in range(len(encoder.channels))]  # type: ignore[arg-type]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own insides
        program: Any = torch.onnx.export(
            to_program(encoder, size=size),
            input_names=["image"],
            output_names=names,
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return write_whole(path, lambda part: program.save(part, external_data=False))


def to_monai(encoder: nn.Module, *, deepest_only: bool = False) -> nn.Module:
    """A Swin as MONAI's `SwinTransformer`, for
    `SwinUNETR(...).swinViT.load_state_dict(to_monai(encoder).state_dict())`.

    Exact for images with more than a window of tokens along each axis at every stage. `deepest_only`: also an
    encoder whose maps are not MONAI's: then only the last map agrees, after `layer_norm`, and a decoder has
    to be trained anew. Raises `ValueError`, "not representable: ...", for what MONAI's network cannot
    compute.
    """
    from monai.networks.nets.swin_unetr import SwinTransformer

    config: dict[str, Any] = getattr(encoder, "config", {})
    for wrong, why in _not_monai(encoder, config, deepest_only):
        if wrong:
            raise ValueError(f"not representable: {why}")
    theirs = SwinTransformer(
        1,
        config["width"],
        (config["window"],) * 3,
        (config["patch"],) * 3,
        config["depths"],
        config["heads"],
        mlp_ratio=config["mlp_ratio"],
        qkv_bias=config["qkv_bias"],
        patch_norm=config["patch_norm"],
        spatial_dims=3,
        use_v2=config.get("convs", False),
    )
    state = {
        _monai_key(key): value for key, value in encoder.state_dict().items() if not key.startswith("norms.")
    }
    buffers = {k: v for k, v in theirs.state_dict().items() if k.endswith("relative_position_index")}
    theirs.load_state_dict({**state, **buffers}, strict=True)
    return theirs.eval()


def _not_monai(encoder: nn.Module, config: dict[str, Any], deepest_only: bool) -> list[tuple[bool, str]]:
    if type(encoder) is not ENCODERS["swin"]:
        return [(True, f"MONAI's SwinUNETR holds a Swin, this is a {type(encoder).__name__}")]
    return [
        (
            len(config["depths"]) != 4 or not config["merge_last"],
            "MONAI's Swin has four stages and merges after each",
        ),
        (
            config.get("merge_order", "each") != "each",
            "MONAI since 1.5 cannot merge as MONAI before 1.5 did; use that MONAI and the original file",
        ),
        (
            config["maps"] != "after" and not deepest_only,
            "this encoder gives its maps before merging, through norms of its own; "
            "MONAI's decoder takes them after merging, without. deepest_only=True exports what agrees, the deepest map",
        ),
    ]


def _monai_key(key: str) -> str:
    key = re.sub(
        r"^stages\.(\d)\.conv\.(conv\d)\.", lambda m: f"layers{int(m[1]) + 1}c.0.layer.{m[2]}.conv.", key
    )
    key = re.sub(r"^stages\.(\d)\.", lambda m: f"layers{int(m[1]) + 1}.0.", key)
    for ours, theirs in {
        ".merge.": ".downsample.",
        "bias_table": "relative_position_bias_table",
        ".fc1.": ".linear1.",
        ".fc2.": ".linear2.",
    }.items():
        key = key.replace(ours, theirs)
    return key
