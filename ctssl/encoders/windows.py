"""Shifted windows as groups of rows: which tokens attend to each other, and in what order they are stored.

The published Swin pads the token grid, rolls it by half a window, cuts it into windows and masks every pair
of tokens that the roll brought together. Those masks only ever split a window along the axes, so the same
result needs neither roll nor mask: each axis is divided into segments (a short one at the start, whole
windows, a short one at the end), and the products of segments are blocks of tokens that attend only to
themselves. Blocks of one shape form a `Group`. Tokens are stored as rows in group order, so that windows are
views and every other layer is a plain matrix product.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, wraps
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ctssl.encoders.attention import leaves_python

CHUNK_ROWS = 4096  # rows at a time: keeps the hidden MLP activations in the processor's cache
TRAINED_ROWS = 16384  # with gradients, where all activations are kept anyway, few large operations are faster


@dataclass(frozen=True)
class Segment:
    """Windows of one shape along one axis: `count` of them from token `start`, each with `real` tokens inside
    the grid.
    """

    start: int
    count: int
    real: int  # tokens of the window inside the grid
    slot: int  # place of the first of them in the window
    padded: int  # tokens of the same region that lie in the padding


@dataclass(frozen=True)
class Group:
    """Blocks of tokens of one shape. `slots` (N,) and `pads` (P,) are flat indices into the window."""

    windows: int
    tokens: int
    slots: Tensor
    pads: Tensor


@dataclass(frozen=True)
class Layout:
    """The row order of one block's windows for a batch: `order` (B*T,) takes grid order to group order."""

    order: Tensor
    inverse: Tensor
    sample: Tensor
    groups: tuple[Group, ...]
    chunk_rows: tuple[int, ...]
    chunks: tuple[tuple[tuple[int, int], ...], ...]  # for each chunk (group, windows) pairs


@dataclass(frozen=True)
class Rolled:
    """Whole windows of a grid that was padded and rolled, as published.

    Attributes:
        windows: tokens of a window along each axis.
        shifts: tokens that the grid is rolled by along each axis.
        pads: tokens that are added at the end of each axis.
        allowed: `(windows, 1, N, N)`, which tokens attend to each other; None if all that share a window do.
    """

    windows: tuple[int, ...]
    shifts: tuple[int, ...]
    pads: tuple[int, ...]
    allowed: Tensor | None

    def cut(self, grid: Tensor) -> Tensor:
        """Turn tokens `(B, x, y, z, C)` into `(B, windows, N, C)`."""
        if any(self.pads):
            grid = F.pad(grid, (0, 0, 0, self.pads[2], 0, self.pads[1], 0, self.pads[0]))
        if any(self.shifts):
            grid = grid.roll([-s for s in self.shifts], (1, 2, 3))
        (a, b, c), batch = self.windows, len(grid)
        x, y, z = (n // w for n, w in zip(grid.shape[1:4], self.windows, strict=True))
        parts = grid.view(batch, x, a, y, b, z, c, -1).permute(0, 1, 3, 5, 2, 4, 6, 7)
        return parts.reshape(batch, x * y * z, a * b * c, grid.shape[-1])

    def join(self, parts: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return `(B, x, y, z, C)` of the grid `size` from `(B, windows, N, C)`."""
        (a, b, c), batch = self.windows, len(parts)
        x, y, z = ((n + p) // w for n, p, w in zip(size, self.pads, self.windows, strict=True))
        grid = parts.view(batch, x, y, z, a, b, c, -1).permute(0, 1, 4, 2, 5, 3, 6, 7)
        grid = grid.reshape(batch, x * a, y * b, z * c, parts.shape[-1])
        if any(self.shifts):
            grid = grid.roll(self.shifts, (1, 2, 3))
        return grid[:, : size[0], : size[1], : size[2]] if any(self.pads) else grid


def untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    """Keep what a function computes out of a `torch.jit.trace`, where it would be recorded the first time alone."""

    @wraps(function)
    def call(*args: Any) -> Any:
        if not torch.jit.is_tracing():  # pyright: ignore[reportPrivateImportUsage]
            return function(*args)
        with ThreadPoolExecutor(1) as pool:  # a trace records its own thread
            return pool.submit(function, *args).result()

    return call


def shrink(
    size: tuple[int, ...], window: int, shift: int, pads: bool = False
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return window and shift per axis: an axis no longer than the window is taken whole and not shifted.

    Args:
        size: token grid.
        window: tokens along each side of a window.
        shift: shift in tokens.
        pads: pad such an axis to the window instead and shift it like any other (SMIT).

    >>> shrink((4, 10, 10), 7, 3)
    ((4, 7, 7), (0, 3, 3))
    """
    if pads:
        return (window,) * len(size), (shift,) * len(size)
    windows = tuple(min(window, n) for n in size)
    return windows, tuple(0 if n <= window else shift for n in size)


def segments(size: int, window: int, shift: int) -> list[Segment]:
    """Split an axis of `size` tokens as pad, roll by `-shift`, window and mask would."""
    padded = -(-size // window) * window
    if shift == 0:
        cuts = [(start, window, 0) for start in range(0, padded, window)]
    else:
        starts = range(shift, padded - window, window)
        cuts = [(0, shift, window - shift), *((s, window, 0) for s in starts)]
        cuts.append((padded - window + shift, window - shift, 0))
    result: list[Segment] = []
    for start, length, slot in cuts:
        real = min(length, size - start)
        if real <= 0:  # a window of padding alone has no effect
            continue
        last = result[-1] if result else None
        if last and (last.real, last.slot, last.padded) == (real, slot, length - real):
            result[-1] = Segment(last.start, last.count + 1, real, slot, last.padded)
        else:
            result.append(Segment(start, 1, real, slot, length - real))
    return result


@untraced
@lru_cache(maxsize=128)
@torch.inference_mode(False)  # cached tensors must be usable in training too
def layout(
    size: tuple[int, int, int],
    window: int,
    shift: int,
    batch: int,
    device: torch.device,
    pads: bool = False,
    rows_at_once: int = CHUNK_ROWS,
) -> Layout:
    """Return rows, groups and chunks for a token grid; cached, because training asks for the same few
    repeatedly.

    Args:
        size: token grid.
        window: tokens along each side of a window.
        shift: shift in tokens.
        batch: number of samples.
        device: where the indices live.
        pads: as for `shrink`.
        rows_at_once: rows per chunk.
    """
    windows, shifts = shrink(size, window, shift, pads)
    count = size[0] * size[1] * size[2]
    grid = torch.arange(count).reshape(size)
    groups, rows = [], []
    for parts in product(*(segments(n, w, s) for n, w, s in zip(size, windows, shifts, strict=True))):
        group, tokens = _group(grid, parts, windows, batch, device)
        groups.append(group)
        rows.append((tokens + torch.arange(batch)[:, None, None] * count).flatten())
    order = torch.cat(rows)
    chunks = _chunks(groups, rows_at_once)
    return Layout(
        order=order.to(device),
        inverse=torch.argsort(order).to(device),
        sample=(order // count).to(device),
        groups=tuple(groups),
        chunk_rows=tuple(sum(groups[g].tokens * n for g, n in chunk) for chunk in chunks),
        chunks=chunks,
    )


@untraced
@lru_cache(maxsize=64)
@torch.inference_mode(False)
def rolled(
    size: tuple[int, int, int], window: int, shift: int, device: torch.device, pads: bool = False
) -> Rolled:
    """Return how a token grid becomes whole windows; arguments as for `layout`.

    Many times fewer operations than groups, each larger, and more arithmetic: what a GPU prefers.
    """
    windows, shifts = shrink(size, window, shift, pads)
    more = tuple(-n % w for n, w in zip(size, windows, strict=True))
    plain = Rolled(windows, shifts, more, None)
    if not any(shifts):
        return plain
    axes = []
    for n, p, w, s in zip(size, more, windows, shifts, strict=True):
        place = torch.arange(n + p)
        axes.append((place >= n + p - w).long() + (place >= n + p - s) if s else torch.zeros_like(place))
    regions = axes[0][:, None, None] * 9 + axes[1][:, None] * 3 + axes[2]
    cut = Rolled(windows, (0, 0, 0), (0, 0, 0), None).cut(regions[None, ..., None])[0, ..., 0]
    return Rolled(windows, shifts, more, (cut[:, None, :, None] == cut[:, None, None]).to(device))


@untraced
@lru_cache(maxsize=32)
@torch.inference_mode(False)
def relative_index(window: tuple[int, ...], full: int, sliced: bool, device: torch.device) -> Tensor:
    """Return `(N, N)` rows of the bias table, one for each pair of places in a window.

    Args:
        window: tokens of the window along each axis.
        full: side of the full window, which the table was made for.
        sliced: in a window that a small grid has shrunk, take the first N rows and columns of the full
            window's index, as MONAI does. These are not the true relative positions, but MONAI's weights need
            them.
        device: where the index lives.
    """
    shape = (full,) * 3 if sliced else window
    places = torch.stack(torch.meshgrid(*(torch.arange(n) for n in shape), indexing="ij"), -1).flatten(0, 2)
    delta = places[:, None] - places[None] + full - 1  # (N, N, 3), 0 .. 2 * full - 2
    index = delta @ torch.tensor([(2 * full - 1) ** 2, 2 * full - 1, 1])
    count = window[0] * window[1] * window[2]
    return index[:count, :count].contiguous().to(device)


def _group(grid, parts, windows, batch, device) -> tuple[Group, Tensor]:
    block = grid
    for axis, part in enumerate(parts):
        block = block.narrow(axis, part.start, part.count * part.real)
    (cx, nx), (cy, ny), (cz, nz) = ((part.count, part.real) for part in parts)
    block = block.reshape(cx, nx, cy, ny, cz, nz).permute(0, 2, 4, 1, 3, 5)
    tokens = block.reshape(cx * cy * cz, nx * ny * nz)  # (windows, tokens)
    inside = torch.zeros(
        windows, dtype=torch.int8
    )  # 0 elsewhere, 1 in the region, 2 in the region and in the grid
    for mark, sizes in ((1, [p.real + p.padded for p in parts]), (2, [p.real for p in parts])):
        inside[tuple(slice(p.slot, p.slot + n) for p, n in zip(parts, sizes, strict=True))] = mark
    places = inside.flatten()
    group = Group(
        windows=cx * cy * cz * batch,  # from numbers, not shapes, which are tensors while a trace is recorded
        tokens=nx * ny * nz,
        slots=(places == 2).nonzero()[:, 0].to(device),
        pads=(places == 1).nonzero()[:, 0].to(device),
    )
    return group, tokens


def _chunks(groups: list[Group], rows_at_once: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """Cut the rows into pieces of about `rows_at_once`, at window borders."""
    chunks, open_chunk, room = [], [], rows_at_once
    for number, group in enumerate(groups):
        left = group.windows
        while left:
            if open_chunk and room < group.tokens:
                chunks.append(tuple(open_chunk))
                open_chunk, room = [], rows_at_once
            take = min(left, max(1, room // group.tokens))
            open_chunk.append((number, take))
            room -= take * group.tokens
            left -= take
    chunks.append(tuple(open_chunk))
    return tuple(chunks)


class _Gather(torch.autograd.Function):
    """Permute rows; the gradient is the gather by the inverse permutation, not a scatter."""

    @staticmethod
    def forward(ctx, rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return rows.index_select(0, order)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        order, inverse = ctx.saved_tensors
        return _Gather.apply(grads[0], inverse, order), None, None


def gather(rows: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """Return `rows[order]`, with a fast gradient."""
    return rows.index_select(0, order) if leaves_python() else _Gather.apply(rows, order, inverse)  # type: ignore[return-value]


def reorder(rows: Tensor, old: Layout | None, new: Layout) -> Tensor:
    """Permute rows from grid order (`old` None) or from another layout into the order of `new`."""
    if old is None:
        return gather(rows, new.order, new.inverse)
    if old is new:
        return rows
    return gather(rows, old.inverse[new.order], new.inverse[old.order])


def unorder(rows: Tensor, plan: Layout) -> Tensor:
    """Permute rows back into grid order."""
    return gather(rows, plan.inverse, plan.order)
