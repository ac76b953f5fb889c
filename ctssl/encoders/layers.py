"""Layers that both encoders share: MLP, stochastic depth, patch embedding."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ctssl.zoo import channels_of


class Mlp(nn.Module):
    """Linear, GELU, linear on the last dimension."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class DropPath(nn.Module):
    """Drop a residual branch per sample, in training only (stochastic depth, Huang 2016).

    Attributes:
        drawn: uniform numbers `(B,)` that decide, instead of the global generator.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate
        self.drawn: Tensor | None = None

    def draw(self, sample: Tensor) -> Tensor | None:
        """Return the factor of each row from the sample it belongs to: 0 or 1 / (1 - rate); None if nothing
        is dropped.
        """
        if self.rate == 0.0 or not self.training:
            return None
        drawn = torch.rand(int(sample.max()) + 1, device=sample.device) if self.drawn is None else self.drawn
        kept = drawn >= self.rate
        return (kept / (1.0 - self.rate))[sample]


def recompute(block: nn.Module, *inputs: Any) -> Any:
    """Compute `block(*inputs)` and compute it again in the backward pass, with the current draw of its
    stochastic depth (the next view draws again).
    """
    drop: Any = block.drop_path
    now = drop.drawn

    def again(*inputs: Any) -> Any:
        later, drop.drawn = drop.drawn, now
        try:
            return block(*inputs)
        finally:
            drop.drawn = later

    return checkpoint(again, *inputs, use_reentrant=False)


class PatchEmbed(nn.Module):
    """Embed `(B, in_channels, X, Y, Z)` as `(B, x, y, z, width)`, one token per patch; the far border is padded with
    zeros.
    """

    def __init__(self, width: int, *, patch: int, norm: bool, in_channels: int = 1) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"invalid in_channels={in_channels} (must be at least 1)")
        self.patch = patch
        self.proj = nn.Conv3d(in_channels, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        channels = self.proj.in_channels
        if x.ndim != 5 or x.shape[1] != channels:
            hint = (
                "use encoder.preprocess(volume)"
                if channels == 1
                else "stack the prepared images of all channels"
            )
            raise ValueError(f"this encoder takes (B, {channels}, X, Y, Z), got {tuple(x.shape)}; {hint}")
        pads = [(-size) % self.patch for size in x.shape[2:]]
        if any(pads):
            x = F.pad(x, (0, pads[2], 0, pads[1], 0, pads[0]))
        x = self.proj(x).permute(0, 2, 3, 4, 1)  # (B, C, x, y, z) -> (B, x, y, z, C)
        return x.contiguous() if self.norm is None else self.norm(x)


def widen(encoder: Any, in_channels: int) -> Any:
    """Return an encoder for several channels with the weights of one for a single channel.

    The kernel of the patch embedding is repeated and divided by `in_channels`, so that equal channels give the maps of
    the one channel.

    Args:
        encoder: an encoder of ctssl; it stays as it is.
        in_channels: number of channels.

    Raises:
        ValueError: the encoder has several channels already, and another number.
    """
    have = channels_of(encoder)
    if have == in_channels:
        return encoder
    if have != 1:
        raise ValueError(
            f"the encoder has {have} channels; only one with a single channel can take {in_channels}"
        )
    wide = type(encoder)(**{**encoder.config, "in_channels": in_channels})
    state = encoder.state_dict()
    wide.spec, wide.origin = encoder.spec, encoder.origin
    if not state:  # of an encoder that gives the image as it is
        return wide
    kernel = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = repeat_channels(kernel, in_channels)
    wide.load_state_dict(state)
    return wide.to(kernel.device, kernel.dtype).train(encoder.training)


def repeat_channels(kernel: Tensor, in_channels: int) -> Tensor:
    """Return a kernel `(out, 1, x, y, z)` on one channel as one on several, of which equal ones give the same result."""
    return kernel.repeat(1, in_channels, 1, 1, 1) / in_channels


def init_weights(module: nn.Module) -> None:
    """Draw weights from a truncated normal (0.02) and zero the biases, as in the published Swin and ViT."""
    if isinstance(module, (nn.Linear, nn.Conv3d)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def upsample(x: Tensor, size: tuple[int, ...]) -> Tensor:
    """Interpolate `(B, C, x, y, z)` to another size, trilinearly; where results have to be the same in every run
    (`ctssl.precision.deterministic`), by products of matrices, as PyTorch's gradient on a GPU is not."""
    if not torch.are_deterministic_algorithms_enabled():
        return F.interpolate(x, tuple(size), mode="trilinear")
    for axis, wanted in enumerate(size, 2):
        weights = _between(x.shape[axis], wanted).to(x)
        x = (x.movedim(axis, -1) @ weights.T).movedim(-1, axis)
    return x


def _between(size: int, wanted: int) -> Tensor:
    """Return the weights `(wanted, size)` of linear interpolation, as `F.interpolate` has them (no aligned corners)."""
    places = ((torch.arange(wanted) + 0.5) * size / wanted - 0.5).clamp(0, size - 1)
    return (1 - (places[:, None] - torch.arange(size)).abs()).clamp(min=0)


def channels_first(tokens: Tensor) -> Tensor:
    return tokens.permute(0, 4, 1, 2, 3)  # (B, x, y, z, C) -> (B, C, x, y, z)


def block_indices(indices: list[int] | None, count: int) -> list[int]:
    """Return block numbers from 0, for `indices` that may be negative; all blocks for None.

    Raises `ValueError` for an index out of range.

    >>> block_indices([0, -1], 6)
    [0, 5]
    """
    if indices is None:
        return list(range(count))
    bad = [i for i in indices if not -count <= i < count]
    if bad:
        raise ValueError(f"unknown block {bad}; choose from {-count} to {count - 1}")
    return [i % count for i in indices]
