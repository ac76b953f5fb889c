"""Encoders for places without ctssl: `torch.export` programs and ONNX files, for images of one size."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ctssl.files.atomic import write_whole


def to_program(encoder: nn.Module, *, size: tuple[int, int, int]) -> torch.export.ExportedProgram:
    """The encoder as a program for images `(1, 1, *size)`; `program.module()(x)` gives its maps, finest first.

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
