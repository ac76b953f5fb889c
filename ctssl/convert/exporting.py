"""Export encoders and segmenters for use without ctssl: MONAI modules, `torch.export` programs and ONNX files of fixed
image size.
"""

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
from ctssl.zoo import channels_of


def to_program(encoder: nn.Module, *, size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """Export an encoder or a segmenter as a `torch.export` program, which runs without ctssl.

    The image size is fixed, because the windows of a Swin are laid out for it.

    Args:
        encoder: the encoder or segmenter.
        size: image size in voxels.

    Returns:
        A program; `program.module()(x)` takes `(1, 1, *size)` and returns the maps, finest first, or the logits.
    """
    x, trains = torch.zeros(1, channels_of(encoder), *size), encoder.training
    try:
        with torch.no_grad():
            encoder.eval()(x)  # computes the window layout, which becomes a constant of the program
            return torch.export.export(encoder, (x,))
    finally:
        encoder.train(trains)


def save_program(model: nn.Module, path: str | os.PathLike, *, size: tuple[int, int, int]) -> Path:
    """Write the program of `to_program` to a file for `torch.export.load`, and return its path."""
    program = to_program(model, size=size)
    return write_whole(Path(path), lambda part: torch.export.save(program, part))


def to_onnx(
    encoder: nn.Module, path: str | os.PathLike, *, size: tuple[int, int, int], overwrite: bool = False
) -> Path:
    """Write an ONNX file with input `image` `(1, 1, *size)` and outputs `map0`, `map1`, ..., finest first; of a
    segmenter, with the output `logits`.

    Args:
        encoder: the encoder or segmenter.
        path: file to write.
        size: image size in voxels.
        overwrite: replace an existing file.

    Raises:
        FileExistsError: the file exists and `overwrite` is False.
        ImportError: the extra `ctssl[export]` is not installed.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists; choose another name, or pass overwrite=True")
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(f"{error}; ONNX export needs pip install 'ctssl[export]'") from error
    maps: Any = getattr(encoder, "channels", None)
    names = ["logits"] if maps is None else [f"map{i}" for i in range(len(maps))]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # raised by the exporter about its own internals
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
    """Convert a Swin of MONAI's shape to MONAI's `SwinTransformer`: one that `ctssl import` brought in, or that
    you built so.

    The encoders that come with ctssl have another shape (three stages, maps before merging; or a ViT), and are
    refused; use them as they are, which takes MONAI's `MetaTensor`s too, or `to_program` and `to_onnx`.

    Use it with `SwinUNETR(...).swinViT.load_state_dict(to_monai(encoder).state_dict())`. It is exact for
    images with more than a window of tokens along each axis at every stage.

    Args:
        encoder: a `Swin`.
        deepest_only: also convert an encoder whose maps are not MONAI's. Only the last map then agrees, after
            `layer_norm`, and a decoder has to be trained anew.

    Raises:
        ValueError: "not representable: ...", if MONAI's network cannot compute the same.
    """
    from monai.networks.nets.swin_unetr import SwinTransformer

    config: dict[str, Any] = getattr(encoder, "config", {})
    for wrong, why in _not_monai(encoder, config, deepest_only):
        if wrong:
            raise ValueError(f"not representable: {why}; to_program and to_onnx export any encoder")
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
            "this encoder gives its maps before merging, through its own norms; MONAI's decoder takes them "
            "after merging, without norms. deepest_only=True exports the deepest map, which agrees",
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
