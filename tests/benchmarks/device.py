"""The device that a benchmark runs on: `--device cuda` anywhere on its command line."""

import sys
import time

import torch

from ctssl.finetuning.start import open_start


def untrained(baseline: str) -> torch.nn.Module:
    """Return the encoder of `swin-scratch` or `vit-scratch`: time does not depend on weights, and no file is needed."""
    start = open_start(baseline, "", from_scratch=True, seed=0)
    start.encoder.spec = start.spec
    return start.encoder


def chosen() -> torch.device:
    """Return the device of `--device`, the CPU without it, and remove it from the command line."""
    if "--device" not in sys.argv:
        return torch.device("cpu")
    place = sys.argv.index("--device")
    _, name = sys.argv[place : place + 2]
    del sys.argv[place : place + 2]
    return torch.device(name)


def now(device: torch.device) -> float:
    """Return the time in seconds once the device has done all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def peak_gb(device: torch.device) -> float:
    """Return the largest memory in GB that was allocated on a GPU since the last call; NaN on a CPU."""
    if device.type != "cuda":
        return float("nan")
    peak = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return peak
