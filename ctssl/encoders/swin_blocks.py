"""The parts of a Swin: window attention, block, merging, convolutions; and the attention weights of a block."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ctssl.encoders.attention import attend, attend_learning_bias, attend_whole, learns_bias, leaves_python
from ctssl.encoders.layers import (
    DropPath,
    Mlp,
    channels_first,
)
from ctssl.encoders.windows import (
    Group,
    Layout,
    Rolled,
    relative_index,
    shrink,
)

MERGE_ORDERS = {
    "each": (
        (0, 0, 0),
        (1, 0, 0),
        (0, 1, 0),
        (0, 0, 1),
        (1, 1, 0),
        (1, 0, 1),
        (0, 1, 1),
        (1, 1, 1),
    ),  # MONAI since 1.5
    "monai-1.4": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)),
}
"""Order in which patch merging concatenates neighbours. MONAI before 1.5 took two of them twice and two
never; weights trained with it need that order."""


class WindowAttention(NamedTuple):
    """Attention weights of one block.

    Attributes:
        weights: `(B, heads, windows, N, N)`, N being the volume of a window.
        origins: `(windows, 3)`, place of each window's first slot in the token grid.
        window: tokens of a window along each axis.

    Slot n lies at `origin + unravel(n, window)`. Origins can be negative and slots can lie outside the grid:
    those have no query (zero rows).
    """

    weights: Tensor
    origins: Tensor
    window: tuple[int, ...]


class Attention(nn.Module):
    """Multi-head self-attention inside windows, with a learned bias for each relative position."""

    def __init__(self, width: int, *, heads: int, window: int, qkv_bias: bool, sliced_bias: bool) -> None:
        super().__init__()
        self.heads, self.window, self.sliced_bias = heads, window, sliced_bias
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)
        self.bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 3, heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)

    def window_bias(self, windows: tuple[int, ...]) -> Tensor:
        """Return the bias `(heads, N, N)` of a window of this shape."""
        index = relative_index(windows, self.window, self.sliced_bias, self.bias_table.device)
        return self.bias_table.t()[:, index.flatten()].reshape(self.heads, *index.shape)

    def group_bias(self, full: Tensor, group: Group) -> Tensor:
        """Return the bias `(heads, N, N)` of the tokens in the grid; `(heads, N, N + 1)` if the window
        extends into the padding.

        Padding tokens all have the key and value of a zero vector, so they act as one key whose bias is the
        log-sum-exp of theirs.
        """
        if len(group.slots) == full.shape[1]:
            return full
        rows = full.index_select(1, group.slots)
        bias = rows.index_select(2, group.slots)
        if len(group.pads):
            bias = torch.cat([bias, rows.index_select(2, group.pads).logsumexp(-1, keepdim=True)], -1)
        return bias

    def forward(self, rows: Tensor, spans: list[tuple[int, Tensor]]) -> Tensor:
        """Attend within windows: `(R, C)` rows in window order; `spans` are (windows, bias) pairs that
        together cover them.
        """
        qkv = self.qkv(rows)
        parts = qkv.split([windows * bias.shape[1] for windows, bias in spans]) if len(spans) > 1 else [qkv]
        mixed = [self._attend(part, bias) for part, (_, bias) in zip(parts, spans, strict=True)]
        return self.proj(torch.cat(mixed) if len(mixed) > 1 else mixed[0])

    def whole(self, parts: Tensor, plan: Rolled) -> Tensor:
        """Attend within whole windows `(B, windows, N, C)`; tokens of other regions are masked."""
        batch, count, tokens, width = parts.shape
        bias = self.window_bias(plan.windows)[None]  # (1, heads, N, N)
        qkv = self.qkv(parts).view(batch, count, tokens, 3, self.heads, width // self.heads)
        bias = bias.to(qkv.dtype)
        if plan.allowed is None:
            q, k, v = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4)  # each (B * windows, heads, N, d)
        else:
            bias = bias.masked_fill(~plan.allowed, float("-inf")).flatten(0, 1)[None]
            q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)  # each (B, windows * heads, N, d)
        mixed = attend_whole(q, k, v, bias)
        mixed = mixed.view(batch, count, self.heads, tokens, -1).transpose(2, 3)
        return self.proj(mixed.reshape(parts.shape))

    def _attend(self, qkv: Tensor, bias: Tensor) -> Tensor:
        tokens = bias.shape[1]
        width = qkv.shape[-1] // 3
        padded = bias.shape[2] > tokens
        if learns_bias(qkv, bias):
            return attend_learning_bias(qkv, bias, self._padding(qkv.dtype) if padded else None)
        qkv = qkv.view(-1, tokens, 3, self.heads, width // self.heads)  # (windows, N, 3, heads, d)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each (windows, heads, N, d)
        if padded:
            k, v = self._with_padding(k, v)
        mixed = attend(q, k, v, bias)  # (windows, heads, N, d)
        return mixed.transpose(1, 2).reshape(-1, width)

    def _padding(self, dtype: torch.dtype) -> Tensor:
        """Return key and value `(2, heads, d)` of a zero vector."""
        if self.qkv.bias is None:
            return self.qkv.weight.new_zeros((2, self.heads, self.qkv.in_features // self.heads), dtype=dtype)
        return self.qkv.bias.to(dtype).view(3, self.heads, -1)[1:]

    def _with_padding(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        windows, heads, _, depth = k.shape
        pads = self._padding(k.dtype)[:, None, :, None].expand(2, windows, heads, 1, depth)
        return torch.cat([k, pads[0]], 2), torch.cat([v, pads[1]], 2)


class Block(nn.Module):
    """Norm, window attention, norm, MLP, with residuals; `shift` moves the windows by half in every second
    block.
    """

    def __init__(
        self,
        width: int,
        *,
        heads: int,
        window: int,
        shift: int,
        mlp_ratio: float,
        qkv_bias: bool,
        drop_path: float,
        sliced_bias: bool,
        pads: bool,
    ) -> None:
        super().__init__()
        self.window, self.shift, self.pads = window, shift, pads
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads=heads, window=window, qkv_bias=qkv_bias, sliced_bias=sliced_bias)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, rows: Tensor, plan: Layout | Rolled, windows: tuple[int, ...]) -> Tensor:
        """Transform `(B*T, C)` rows in the order of `plan`, or a grid `(B, x, y, z, C)` whose windows `plan` rolls; the
        result has the same shape and order.
        """
        if isinstance(plan, Rolled):
            return self._whole_windows(rows, plan)
        full = self.attn.window_bias(windows)
        if torch.is_autocast_enabled(rows.device.type):
            full = full.to(torch.get_autocast_dtype(rows.device.type))
        biases = [self.attn.group_bias(full, group) for group in plan.groups]
        keep = self.drop_path.draw(plan.sample)
        parts = rows.split(plan.chunk_rows) if len(plan.chunks) > 1 else [rows]
        keeps = keep.split(plan.chunk_rows) if keep is not None else [None] * len(parts)
        done = []
        for part, chunk, kept in zip(parts, plan.chunks, keeps, strict=True):
            spans = [(count, biases[group]) for group, count in chunk]
            part = part + scaled(self.attn(self.norm1(part), spans), kept)
            done.append(part + scaled(self.mlp(self.norm2(part)), kept))
        return torch.cat(done) if len(done) > 1 else done[0]

    def _whole_windows(self, grid: Tensor, plan: Rolled) -> Tensor:
        """Transform a grid `(B, x, y, z, C)` whose windows are rolled and masked."""
        sample = torch.arange(len(grid), device=grid.device)
        keep = self.drop_path.draw(sample)
        keep = keep if keep is None else keep.view(-1, 1, 1, 1)
        mixed = plan.join(self.attn.whole(plan.cut(self.norm1(grid)), plan), grid.shape[1:4])
        grid = grid + scaled(mixed, keep)
        return grid + scaled(self.mlp(self.norm2(grid)), keep)


class Merge(nn.Module):
    """Patch merging: concatenate 2x2x2 neighbours, norm, linear to twice the width."""

    def __init__(self, width: int, *, order: str) -> None:
        super().__init__()
        self.places = MERGE_ORDERS[order]
        self.norm = nn.LayerNorm(8 * width)
        self.reduction = nn.Linear(8 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merge `(B, x, y, z, C)` to `(B, ceil(x/2), ceil(y/2), ceil(z/2), 2C)`."""
        pads = [size % 2 for size in x.shape[1:4]]
        if any(pads):
            x = F.pad(x, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
        whole = len(set(self.places)) == 8 and torch.is_grad_enabled() and not leaves_python()
        beside = _Neighbours.apply(x, self.places) if whole else neighbours(x, self.places)
        return self.reduction(self.norm(beside))


def neighbours(x: Tensor, places: tuple[tuple[int, int, int], ...]) -> Tensor:
    """Concatenate the cells of each 2x2x2 cube: `(B, x, y, z, C)` -> `(B, x/2, y/2, z/2, 8C)`."""
    return torch.cat([x[:, i::2, j::2, k::2] for i, j, k in places], -1)


class _Neighbours(torch.autograd.Function):
    """`neighbours` with a gradient that writes each cell once; autograd would add eight tensors of zeros."""

    @staticmethod
    def forward(ctx, x: Tensor, places: tuple[tuple[int, int, int], ...]) -> Tensor:
        ctx.places = places
        return neighbours(x, places)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        batch, x, y, z, channels = grads[0].shape
        gradient = grads[0].new_empty((batch, 2 * x, 2 * y, 2 * z, channels // 8))
        for (i, j, k), part in zip(ctx.places, grads[0].chunk(8, -1), strict=True):
            gradient[:, i::2, j::2, k::2] = part
        return gradient, None


class Conv(nn.Module):
    """Two 3x3x3 convolutions with instance norm and leaky ReLU and a residual: Swin UNETR V2's (MONAI
    `use_v2`).
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(width, width, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(width, width, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Transform `(B, x, y, z, C)`; the result has the same shape."""
        start = channels_first(x).contiguous()
        middle = F.leaky_relu(F.instance_norm(self.conv1(start)), 0.01)
        end = F.leaky_relu(F.instance_norm(self.conv2(middle)) + start, 0.01)
        return end.permute(0, 2, 3, 4, 1).contiguous()


def scaled(branch: Tensor, keep: Tensor | None) -> Tensor:
    return branch if keep is None else branch * keep[:, None].to(branch.dtype)


def window_attention(
    block: nn.Module,
    rows: Tensor,
    plan: Layout,
    windows: tuple[int, ...],
    *,
    size: tuple[int, int, int],
    batch: int,
) -> WindowAttention:
    """Compute the attention weights of a block plainly, from each group's tokens into the slots of whole
    windows.

    Args:
        block: the block.
        rows: its input `(B*T, C)` in the order of `plan`.
        plan: layout of the rows.
        windows: tokens of a window along each axis.
        size: token grid.
        batch: number of samples.
    """
    assert isinstance(block, Block)
    attn, shifts = block.attn, shrink(size, block.window, block.shift, block.pads)[1]
    starts = [range(s - w if s else 0, n, w) for n, w, s in zip(size, windows, shifts, strict=True)]
    origins = torch.cartesian_prod(*(torch.tensor(list(s)) for s in starts)).reshape(-1, 3)
    volume = windows[0] * windows[1] * windows[2]
    weights = rows.new_zeros((batch, attn.heads, len(origins), volume, volume))
    full = attn.window_bias(windows)
    qkv, row = attn.qkv(block.norm1(rows)), 0
    counts = torch.tensor([len(s) for s in starts])
    for group in plan.groups:
        count = group.windows * group.tokens
        tokens = plan.order[row : row + count : group.tokens]  # first token of each window, in the grid
        part = qkv[row : row + count].view(group.windows, group.tokens, 3, attn.heads, -1)
        q, k, v = part.permute(2, 0, 3, 1, 4)
        if len(group.pads):
            k, _ = attn._with_padding(k, v)
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + attn.group_bias(full, group)
        probs = logits.softmax(-1)  # (windows, heads, N, N or N + 1)
        if len(group.pads):  # distribute the padding key's weight by the padding tokens' biases
            pad_bias = full[:, group.slots][:, :, group.pads]
            probs = torch.cat([probs[..., :-1], probs[..., -1:] * pad_bias.softmax(-1)], -1)
        local = torch.tensor(size)
        flat = tokens % local.prod()
        place = torch.stack(torch.unravel_index(flat, size), -1)  # (windows, 3)
        first = torch.stack(torch.unravel_index(group.slots[:1], windows), -1)
        cell = torch.stack([(place[:, a] - first[:, a] - starts[a][0]) // windows[a] for a in range(3)], -1)
        number = (cell[:, 0] * counts[1] + cell[:, 1]) * counts[2] + cell[:, 2]
        columns = torch.cat([group.slots, group.pads])
        target = weights[tokens // local.prod(), :, number]  # (windows, heads, volume, volume)
        target[:, :, group.slots[:, None], columns[None]] = probs
        weights[tokens // local.prod(), :, number] = target
        row += count
    return WindowAttention(weights, origins, windows)
