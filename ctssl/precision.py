"""Mixed precision with correct gradients, and results that are the same in every run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
CONVOLUTIONS = (torch.conv3d, torch.conv_transpose3d)


@contextmanager
def half(device: str, *, enabled: bool) -> Iterator[None]:
    """Run a forward pass whose gradients are needed under bf16 autocast.

    Args:
        device: device type, "cpu" or "cuda".
        enabled: False keeps float32.
    """
    with torch.autocast(device, torch.bfloat16, enabled=enabled):
        if not enabled or device != "cpu":
            yield
        else:
            with _Thin():
                yield


@contextmanager
def deterministic(*, enabled: bool) -> Iterator[None]:
    """Take the algorithms of PyTorch that give the same result in every run, on one machine with the same versions.

    They are slower on a GPU, where PyTorch raises `RuntimeError` for what has none, and `ValueError` is raised where the
    process has multiplied matrices on it before. `enabled`: False changes nothing.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault(CUBLAS, ":4096:8")  # cuBLAS asks for it, before its first product
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    except RuntimeError as error:
        if CUBLAS in str(error):  # cuBLAS looked before it was set, at its first product
            raise ValueError(
                f"this process has used the GPU already; start it again with {CUBLAS}=:4096:8 in its environment, or leave "
                "deterministic out"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=warn_only)
        torch.backends.cudnn.benchmark = before[1]


class _Thin(TorchFunctionMode):
    """Run convolutions of images with fewer planes than the kernel in float32.

    In bf16 on a CPU their weight gradient is partly uninitialised memory (PyTorch 2.14.1, oneDNN,
    AVX512_BF16): a 3x3x3 kernel on 2x2x2 voxels gives NaN, or numbers of any size.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple = (), kwargs: Any = None
    ) -> Any:
        if func in CONVOLUTIONS and args[0].shape[2] < args[1].shape[2]:
            with torch.autocast("cpu", enabled=False):
                full = [x.float() if isinstance(x, torch.Tensor) else x for x in args]
                return func(*full, **(kwargs or {}))
        return func(*args, **(kwargs or {}))
