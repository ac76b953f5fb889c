"""Mixed precision with correct gradients."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

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
