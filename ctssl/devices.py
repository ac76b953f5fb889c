"""Devices: choose one, join those that torchrun started, and ask what one can do."""

from __future__ import annotations

import os
import warnings
from datetime import timedelta
from typing import Any

import torch
from torch import distributed as dist

PATIENCE = timedelta(days=1)  # for which the other devices wait while the first one prepares or judges scans


def choose_device(name: str | torch.device) -> torch.device:
    """Return a torch device; "auto" is a GPU if there is one: CUDA, else Apple's (MPS, which nobody has tested yet).

    Raises `ValueError` for an unknown or unavailable device.
    """
    has_cuda = torch.cuda.is_available()
    try:
        best = "cuda" if has_cuda else "mps" if torch.backends.mps.is_available() else "cpu"
        device = torch.device(best if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"unknown device {name!r}; use auto, cpu, cuda, cuda:1, mps, ...") from error
    if (device.type == "cuda" and not has_cuda) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    ):
        raise ValueError(
            f"device {name} is not available: this machine, or this PyTorch, has no {device.type.upper()}; "
            "omit --device, or use cpu"
        )
    return device


def device_name(device: torch.device) -> str:
    """Return what a report calls a device: `cpu`, or `cuda (NVIDIA H200)`."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def join_devices(device: str) -> tuple[int, torch.device]:
    """Return this process's rank (0 unless torchrun started several) and its device; first join those that torchrun started."""
    where, local = choose_device(device), int(os.environ.get("LOCAL_RANK", 0))
    if where.type == "cuda":
        where = torch.device("cuda", local if where.index is None else where.index)
        torch.cuda.set_device(where)  # what NCCL takes for objects
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
    return rank_and_world()[0], where


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes; (0, 1) without torchrun."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def agreed(value: Any, world: int) -> Any:
    """Return the first process's value on each of `world` processes."""
    if world == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def free_memory(device: torch.device) -> int:
    """Return the bytes of a CUDA device that this process can take: what nobody holds, and what PyTorch keeps for later."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept


def multiplies_bf16(device: torch.device) -> bool:
    """Return whether a GPU has units for bf16. Older ones (before Ampere) emulate it, many times slower than float32."""
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def warn_of_slow_bf16(device: torch.device) -> None:
    """Warn where bf16 was asked for on a device that has no instructions for it, and takes many times as long."""
    fast = {"cuda": multiplies_bf16, "cpu": lambda _: torch.ops.mkldnn._is_mkldnn_bf16_supported()}
    if device.type in fast and not fast[device.type](device):
        warnings.warn(
            f"{device_name(device)} has no instructions for bf16, which takes several times as long as float32 here; leave "
            "bf16 (--bf16) out",
            stacklevel=3,
        )
