"""3D Vision Transformer (arXiv 2010.11929), numerically equal to MONAI's on the same weights."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctssl.encoders.attention import attend
from ctssl.encoders.layers import (
    DropPath,
    Mlp,
    PatchEmbed,
    block_indices,
    channels_first,
    init_weights,
    recompute,
    upsample,
)
from ctssl.encoders.pretrained import Pretrained


class Attention(nn.Module):
    """Multi-head self-attention among all tokens."""

    def __init__(self, width: int, *, heads: int, qkv_bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Split `(B, N, C)` into queries, keys and values, each `(B, heads, N, d)`."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def forward(self, x: Tensor) -> Tensor:
        mixed = attend(*self.split(x))  # (B, heads, N, d)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Norm, attention, norm, MLP, with residuals."""

    def __init__(
        self, width: int, *, heads: int, mlp_ratio: float, qkv_bias: bool, drop_path: float, eps: float = 1e-5
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=eps)
        self.attn = Attention(width, heads=heads, qkv_bias=qkv_bias)
        self.norm2 = nn.LayerNorm(width, eps=eps)
        self.mlp = Mlp(width, int(width * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        keep = self.drop_path.draw(torch.arange(len(x), device=x.device))
        scale = 1.0 if keep is None else keep[:, None, None].to(x.dtype)
        x = x + scale * self.attn(self.norm1(x))
        return x + scale * self.mlp(self.norm2(x))


class ViT(nn.Module, Pretrained):
    """3D Vision Transformer: images `(B, in_channels, X, Y, Z)` -> `maps` maps `(B, width, ceil(X/patch), ...)`,
    shallowest first.

    The maps come from blocks spread evenly over the depth. The last one goes through the final norm, the
    others through a norm without parameters.

    Args:
        width: channels.
        depth: blocks.
        heads: attention heads.
        patch: voxels along each side of a token.
        grid: tokens along each axis for which positions are learned; other sizes interpolate them.
        mlp_ratio: hidden width of the MLP relative to its width.
        qkv_bias: learn biases of queries, keys and values.
        maps: number of feature maps.
        extra: tokens without a place, which take part in attention but in no map: class token, registers.
        norm_eps: epsilon of the layer norms; timm's ViTs use 1e-6.
        in_channels: channels of the image.
        drop_path: stochastic depth of the last block, growing linearly from 0; training only.
        checkpointing: recompute each block in the backward pass: less memory, about a third more time.
    """

    architecture = "vit"

    def __init__(
        self,
        width: int = 768,
        *,
        depth: int = 12,
        heads: int = 12,
        patch: int = 16,
        grid: tuple[int, ...] = (6, 6, 6),
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        maps: int = 4,
        extra: int = 0,
        norm_eps: float = 1e-5,
        in_channels: int = 1,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"invalid heads={heads} (must divide the width {width})")
        if not 1 <= maps <= depth:
            raise ValueError(f"invalid maps={maps} (must be 1 to depth={depth})")
        self.config = dict(
            width=width,
            depth=depth,
            heads=heads,
            patch=patch,
            grid=tuple(grid),
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            maps=maps,
        )
        self.config |= {"extra": extra} if extra else {}  # configs of models without it do not change
        self.config |= {"in_channels": in_channels} if in_channels != 1 else {}
        self.config |= {"norm_eps": norm_eps} if norm_eps != 1e-5 else {}
        self.checkpointing = checkpointing
        self.patch_embed = PatchEmbed(width, patch=patch, norm=False, in_channels=in_channels)
        self.positions = nn.Parameter(sine_positions(tuple(grid), width))
        self.extra = nn.Parameter(torch.randn(1, extra, width) * 0.02) if extra else None
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(
            Block(width, heads=heads, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias, drop_path=rate, eps=norm_eps)
            for rate in rates
        )
        self.norm = nn.LayerNorm(width, eps=norm_eps)
        self.apply(init_weights)
        self.taken = [round((i + 1) * depth / maps) - 1 for i in range(maps)]
        self.channels, self.strides = (width,) * maps, (patch,) * maps

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.encode(self.patch_embed(x))

    def encode(self, tokens: Tensor) -> list[Tensor]:
        """Encode tokens `(B, x, y, z, C)` of `patch_embed`, masked or not, to feature maps."""
        kept = self._run(self._placed(tokens), keep=set(self.taken))
        kept = {i: x[:, : tokens.shape[1:4].numel()] for i, x in kept.items()}  # without the extra tokens
        maps = [F.layer_norm(kept[i], kept[i].shape[-1:]) for i in self.taken[:-1]] + [
            self.norm(kept[self.taken[-1]])
        ]
        return [channels_first(m.unflatten(1, tokens.shape[1:4])) for m in maps]

    def encode_tokens(
        self, tokens: Tensor, positions: Tensor, *, grid: tuple[int, ...] | None = None
    ) -> Tensor:
        """Encode any choice of tokens, as MAE needs it.

        Args:
            tokens: `(B, N, C)`.
            positions: `(B, N, 3)`, their places in the token grid.
            grid: the token grid that the places refer to. Default: that of the learned positions.

        Returns:
            `(B, N, C)` after the final norm.
        """
        table = self.position_grid(grid or self.positions.shape[:3])
        i, j, k = positions.long().unbind(-1)
        placed = self._with_extra(tokens + table[i, j, k].to(tokens.dtype))
        return self.norm(self._run(placed, keep=set())[-1][:, : tokens.shape[1]])

    def position_grid(self, grid: tuple[int, ...]) -> Tensor:
        """Return `(*grid, C)`: the learned positions, interpolated if the grid differs from theirs."""
        if tuple(grid) == tuple(self.positions.shape[:3]):
            return self.positions
        table = self.positions.float().permute(3, 0, 1, 2)[None]  # (1, C, x, y, z)
        return upsample(table, grid)[0].permute(1, 2, 3, 0)

    def forward_intermediates(self, x: Tensor, *, indices: list[int] | None = None) -> list[Tensor]:
        """Return outputs `(B, C, x, y, z)` of the blocks `indices` (default: all; negative counts from the
        end).
        """
        wanted = block_indices(indices, len(self.blocks))
        tokens = self.patch_embed(x)
        kept = self._run(self._placed(tokens), keep=set(wanted))
        count = tokens.shape[1:4].numel()
        return [channels_first(kept[i][:, :count].unflatten(1, tokens.shape[1:4])) for i in wanted]

    def attention(self, x: Tensor, *, block: int) -> Tensor:
        """Return the attention weights `(B, heads, N, N)` of one block.

        Token n lies at `unravel(n, token grid)`; extra tokens come last.
        """
        (wanted,) = block_indices([block], len(self.blocks))
        tokens = self._placed(self.patch_embed(x))
        if wanted:
            tokens = self._run(tokens, keep={wanted - 1})[wanted - 1]
        module: Block = self.blocks[wanted]  # type: ignore[assignment]
        q, k, _ = module.attn.split(module.norm1(tokens))
        return (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(-1)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return which layer each weight belongs to, for `timm.optim.param_groups_layer_decay`."""
        return {
            "stem": r"^patch_embed|^positions|^extra",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))],
        }

    def _apply(self, fn, recurse: bool = True):
        """Move or convert the weights. PyTorch takes the four dimensions of the positions for a 2D image's and
        would refuse them `channels_last_3d`.
        """
        return super()._apply(lambda x: fn(x[None])[0].contiguous() if x.ndim == 4 else fn(x), recurse)

    def _placed(self, tokens: Tensor) -> Tensor:
        placed = tokens + self.position_grid(tokens.shape[1:4]).to(tokens.dtype)
        return self._with_extra(placed.flatten(1, 3))  # (B, x*y*z + extra, C)

    def _with_extra(self, x: Tensor) -> Tensor:
        """Append the extra tokens: attention is order-independent, and the others keep their numbers."""
        return x if self.extra is None else torch.cat([x, self.extra.to(x.dtype).expand(len(x), -1, -1)], 1)

    def _run(self, x: Tensor, keep: set[int]) -> dict[int, Tensor]:
        """Return outputs of the blocks `keep`; key -1 is the last one."""
        kept = {}
        for i, block in enumerate(self.blocks):
            if self.checkpointing and torch.is_grad_enabled():
                x = recompute(block, x)
            else:
                x = block(x)
            if i in keep:
                kept[i] = x
        kept[-1] = x
        return kept


def sine_positions(grid: tuple[int, ...], width: int) -> Tensor:
    """Return `(*grid, width)`: sines and cosines of each coordinate, a third of the channels each (arXiv
    1706.03762).
    """
    if (
        torch.get_default_device().type == "meta"
    ):  # only the shape counts; arithmetic there loads torch._dynamo, seconds
        return torch.empty(*grid, width)
    pairs = width // 6
    rates = 1.0 / 10000 ** (torch.arange(pairs) / max(pairs, 1))
    parts = []
    for axis, size in enumerate(grid):
        shape = [1, 1, 1, pairs]
        shape[axis] = size
        angle = (torch.arange(size)[:, None] * rates).view(shape).expand(*grid, pairs)
        parts += [angle.sin(), angle.cos()]
    parts.append(torch.zeros(*grid, width - 6 * pairs))
    return torch.cat(parts, -1) * 0.1
