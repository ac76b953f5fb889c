"""Compile the blocks of an encoder with `torch.compile`."""

from __future__ import annotations

import os
import shutil
import sys
import warnings
from typing import Any


def compile_blocks(encoder: Any, *, backend: str = "inductor") -> None:
    """Compile every block of an encoder, in place; weights and their names do not change.

    Args:
        encoder: a Swin or ViT.
        backend: of `torch.compile`.

    Raises:
        ValueError: the encoder has no blocks, or the compiler that the backend calls is missing.
    """
    import torch._dynamo

    if not hasattr(encoder, "blocks"):
        raise ValueError("this model has no blocks to compile (nnU-Net's network); leave --compile out")
    if backend == "inductor":
        check_compiler(next(encoder.parameters()).device.type)
    # the cached function depends on shapes alone, which do not change
    warnings.filterwarnings("ignore", "Dynamo detected a call to a `functools.lru_cache`")
    # one program for every block
    torch._dynamo.config.recompile_limit = max(64, torch._dynamo.config.recompile_limit)
    for block in encoder.blocks:
        block.compile(dynamic=False, backend=backend)


def check_compiler(device: str) -> None:
    """Raise `ValueError` unless the compiler that `torch.compile` calls for a device is there."""
    if device == "cuda":  # Triton's
        names = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang"]
    else:
        names = [os.environ.get("CXX", {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++"))]
    if not any(map(shutil.which, names)):
        kind = "C" if device == "cuda" else "C++"
        raise ValueError(
            f"compiling needs the {kind} compiler {names[0]}, which is not here; install it, or leave --compile out"
        )
