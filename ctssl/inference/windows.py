"""A network over a whole image in overlapping windows. It knows no model of ctssl: it calls what it is given."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ctssl.devices import free_memory, warn_of_slow_bf16

MEMORY_GB = 8.0
GPU_VOXELS = 16 * 64**3  # of the windows of one batch on a GPU
FLOATS_PER_VOXEL_GPU = 320  # held for each voxel of a window: 302 by the paper's Swin with `swin-unetr`
PEAK_SLABS = 4  # peak memory of what is blended, in slabs
MAX_WINDOWS = 1_000_000  # of a scan; 64 voxels, half of them shared, make a few thousand


@dataclass(frozen=True)
class Windows:
    """How a whole scan goes through a network.

    Args:
        overlap: share of a window that the next one sees again, 0 to below 1.
        tta: average over all eight mirrorings (test-time augmentation), eight times the work.
        max_memory_gb: memory limit of the process in GB.
        batch: windows that go through the network together; None: one on a CPU, as many as `GPU_VOXELS` and the free memory
            allow on a GPU. Halved as often as they do not fit into the memory of the device.
        bf16: run the network in bf16: faster on a GPU, and slightly other masks.
        deterministic: the same mask in every run; on a GPU it may otherwise differ by single voxels.
        compiled: compile the blocks of the encoder first, which takes seconds to minutes; for many scans.
    """

    overlap: float = 0.5
    tta: bool = False
    max_memory_gb: float = MEMORY_GB
    batch: int | None = None
    bf16: bool = False
    compiled: bool = False
    deterministic: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < 1:
            raise ValueError(f"overlap={self.overlap}: use a share from 0 to below 1")
        if not self.max_memory_gb > 0:
            raise ValueError(
                f"max_memory_gb={self.max_memory_gb}: give a number of GB above 0 (--max-memory)"
            )
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"invalid batch={self.batch} (must be at least 1 window)")


@torch.inference_mode()
def slide(
    network: Callable[[Tensor], Tensor],
    image: np.ndarray,
    side: int,
    *,
    classes: int,
    windows: Windows = Windows(),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    name: str = "scan",
    progress: bool = False,
    skip_air: bool = True,
) -> np.ndarray:
    """Blend the predictions of a network for overlapping windows into probabilities of the whole image.

    Windows follow one another along x, and what no later window touches is finished: only a slab is held in
    float32. Windows of nothing but air (0) cost nothing: the answer to one of them serves for all (`skip_air`).

    Args:
        network: `(B, C, side, side, side)` -> logits `(B, classes, side, side, side)`.
        image: `(C, X, Y, Z)`, or `(X, Y, Z)` for one channel, float32, 0 to 1.
        side: voxels along each side of a window.
        device, dtype: of the network.
        name: of the scan, for messages.

    Returns:
        `(classes, X, Y, Z)` float16.

    Raises:
        ValueError: the network gives NaN or infinite values, or there would be more than `MAX_WINDOWS` windows.
        MemoryError: not even one window fits into the memory of the device, or not what is blended there.
    """
    from tqdm import tqdm

    image = image if image.ndim == 4 else image[None]
    size = image.shape[1:]
    low = [(max(side - n, 0)) // 2 for n in size]
    if min(size) < side:
        image = np.pad(image, [(0, 0), *((a, max(side - n, 0) - a) for n, a in zip(size, low, strict=True))])
    extent = image.shape[1:]
    starts = [window_starts(n, side, windows.overlap) for n in extent]
    count = math.prod(map(len, starts))
    if count > MAX_WINDOWS:
        raise ValueError(
            f"{name}: {count} windows of {side} voxels, more than {MAX_WINDOWS}; set `window` in the config.json of the "
            "model to the size of its training crops, or let windows overlap less"
        )
    device = torch.device(device)
    if windows.bf16:
        warn_of_slow_bf16(device)
    bell = torch.from_numpy(gaussian(side))
    weight = (bell[:, None, None] * bell[:, None] * bell).to(device)
    totals = [total_weight(bell, places, n) for places, n in zip(starts, extent, strict=True)]
    held = 4 * classes * side * math.prod(extent[1:])
    network = mirrored(network) if windows.tta else network
    answer = _Answers(network, windows, side, device, dtype, name, PEAK_SLABS * held)
    result = np.zeros((classes, *extent), np.float16)
    bar = tqdm(total=count, desc="segmenting", disable=not progress)
    with _room_on(device, name), bar:
        slab = torch.zeros(classes, side, *extent[1:], device=device)
        for x, after in zip(starts[0], [*starts[0][1:], extent[0]], strict=True):
            places = list(itertools.product(*starts[1:]))
            cubes = [torch.from_numpy(image[:, x : x + side, y : y + side, z : z + side]) for y, z in places]
            for (y, z), found in zip(places, answer.of_all(cubes, skip_air=skip_air), strict=True):
                slab[:, :, y : y + side, z : z + side] += found * weight
                bar.update()
            done = after - x
            total = totals[0][x:after, None, None] * totals[1][:, None] * totals[2]
            result[:, x:after] = (slab[:, :done] / total.to(device)).softmax(0).cpu().numpy()
            slab = torch.cat([slab[:, done:], slab.new_zeros(classes, done, *extent[1:])], 1)
    inside = tuple(slice(a, a + n) for a, n in zip(low, size, strict=True))
    return result[(slice(None), *inside)]


@contextmanager
def _room_on(device: torch.device, name: str) -> Iterator[None]:
    """Raise `MemoryError`, which says what to do, where the memory of a device is too small for what is blended on it."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise MemoryError(
            f"{name} does not fit into the memory of {device}; free some, or use the CPU (--device cpu)"
        ) from error


class _Answers:
    """The network's logits of windows, several at a time; see `slide`."""

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        windows: Windows,
        side: int,
        device: torch.device,
        dtype: torch.dtype,
        name: str,
        reserved: int,
    ) -> None:
        self.network, self.device, self.dtype, self.name = network, device, dtype, name
        self.bf16 = windows.bf16
        self.batch = windows.batch or windows_at_once(device, side, reserved)
        self.fixed = windows.compiled  # a program is compiled for one size of the batch
        self.air: Tensor | None = None

    def of_all(self, cubes: list[Tensor], *, skip_air: bool) -> Iterator[Tensor]:
        """Yield logits `(classes, side, side, side)` float32 of each cube; those of air are computed once."""
        empty = [skip_air and not cube.any() for cube in cubes]
        if self.air is None and any(empty):
            (self.air,) = self._of([cubes[empty.index(True)]])
        full = [cube for cube, nothing in zip(cubes, empty, strict=True) if not nothing]
        found, start = iter(()), 0
        for nothing in empty:
            if nothing:
                assert self.air is not None
                yield self.air
                continue
            one = next(found, None)
            if one is None:
                answers = self._of(full[start : start + self.batch])
                start += len(answers)
                found = iter(answers)
                one = next(found)
            yield one

    def _of(self, cubes: list[Tensor]) -> Tensor:
        """Return the logits of the first cubes, as many as fit into the memory."""
        count = self.batch if self.fixed else len(cubes)
        try:
            inputs = torch.stack([*cubes, *cubes[-1:] * (count - len(cubes))]).to(self.device, self.dtype)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                answers = self.network(inputs)[: len(cubes)].float()
            finite = bool(torch.isfinite(answers).all())
        except torch.OutOfMemoryError as error:
            if count == 1:
                raise MemoryError(
                    f"one window of {cubes[0].shape[-1]} voxels does not fit into the memory of {self.device}; free some, or "
                    "use the CPU (--device cpu)"
                ) from error
            self.batch = count // 2
        else:
            if not finite:
                raise ValueError(
                    f"the model gives NaN or infinite values for {self.name}; the weights are damaged, or its training failed: "
                    "get the model again, or train it again"
                )
            return answers
        torch.cuda.empty_cache()  # outside `except`, which holds on to what did not fit
        return self._of(cubes[: self.batch])


def windows_at_once(device: torch.device, side: int, reserved: int = 0) -> int:
    """Return how many windows go through a network together: one on a CPU, and where every run has to give the same
    result (`deterministic`), since the batch size changes the last digits; on a GPU as many as are worth it and fit
    into its free memory less the `reserved` bytes."""
    if device.type == "cpu" or torch.are_deterministic_algorithms_enabled():
        return 1
    worth = GPU_VOXELS // side**3
    if device.type == "cuda":
        worth = min(worth, (free_memory(device) - reserved) // (side**3 * 4 * FLOATS_PER_VOXEL_GPU))
    return max(1, worth)


def window_starts(size: int, side: int, overlap: float) -> list[int]:
    """Return the starts of windows that cover `size` evenly and overlap by at least `overlap`."""
    count = math.ceil((size - side) / max(1, round(side * (1 - overlap)))) + 1
    return [round(i * (size - side) / max(1, count - 1)) for i in range(count)]


def gaussian(side: int) -> np.ndarray:
    """Return the weights of the places along a window: 1 in the middle, at least 0.001; their products weight
    a window (nnU-Net's)."""
    places = (np.arange(side) - (side - 1) / 2) / (side / 8)
    return np.maximum(np.exp(-0.5 * places**2), 1e-3).astype(np.float32)


def total_weight(bell: Tensor, starts: list[int], size: int) -> Tensor:
    """Return the sum of the weights at each place along an axis; windows lie on a grid, so their sums are products of
    these."""
    total = torch.zeros(size)
    for start in starts:
        total[start : start + len(bell)] += bell
    return total


def mirrored(network: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a network whose logits are averaged over all eight mirrorings."""

    def averaged(window: Tensor) -> Tensor:
        total = torch.zeros(1, device=window.device)
        for count in range(4):
            for axes in itertools.combinations((2, 3, 4), count):
                total = total + network(window.flip(axes)).flip(axes)
        return total / 8

    return averaged
