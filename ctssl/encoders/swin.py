"""3D Swin Transformer (Liu 2021), numerically equal to MONAI's and to the paper's, and faster on the same
weights.

Its parts are in `swin_blocks`, the windows in `windows`.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ctssl.encoders.attention import leaves_python
from ctssl.encoders.layers import (
    PatchEmbed,
    block_indices,
    channels_first,
    init_weights,
    recompute,
)
from ctssl.encoders.pretrained import Pretrained
from ctssl.encoders.swin_blocks import MERGE_ORDERS, Block, Conv, Merge, WindowAttention, window_attention
from ctssl.encoders.windows import (
    CHUNK_ROWS,
    TRAINED_ROWS,
    Layout,
    layout,
    reorder,
    rolled,
    shrink,
    unorder,
)


class Stage(nn.Module):
    """Blocks of one resolution, the convolutions before them if any, and the merging to the next one."""

    blocks: Any
    merge: Merge | None
    conv: Conv | None

    def __init__(self, blocks: list[Block], merge: Merge | None, conv: Conv | None) -> None:
        super().__init__()
        self.conv = conv
        self.blocks = nn.ModuleList(blocks)
        self.merge = merge


USUAL = {"small_grids": "shrink", "merge_order": "each", "convs": False}  # arguments that a config omits


def _check_args(
    depths: tuple[int, ...], heads: tuple[int, ...], width: int, maps: str, small_grids: str, merge_order: str
) -> None:
    """Raise `ValueError` for arguments that `Swin` cannot be built from."""
    if small_grids not in ("shrink", "pad") or merge_order not in MERGE_ORDERS:
        raise ValueError(
            f"invalid small_grids={small_grids!r} (must be 'shrink' or 'pad') or "
            f"merge_order={merge_order!r} (must be one of {sorted(MERGE_ORDERS)})"
        )
    if maps not in ("before", "after"):
        raise ValueError(f"invalid maps={maps!r} (must be 'before' merging, the paper, or 'after', MONAI)")
    if len(depths) != len(heads):
        raise ValueError(f"invalid depths={depths}, heads={heads} (both need one number per stage)")
    widths = [width * 2**i for i in range(len(depths))]
    if any(w % h for w, h in zip(widths, heads, strict=True)):
        raise ValueError(f"invalid heads={heads} (must divide the widths {widths} of the stages)")


class Swin(nn.Module, Pretrained):
    """3D Swin Transformer: images `(B, in_channels, X, Y, Z)` -> maps `(B, channels[i], ceil(X/strides[i]), ...)`,
    finest first.

    Attention weights, biases and map order follow arXiv 2103.14030, MONAI `SwinTransformer` and SMIT.

    Args:
        width: channels of the first stage; doubled by every merging.
        depths: blocks of each stage.
        heads: attention heads of each stage.
        window: tokens along each side of an attention window.
        patch: voxels along each side of a token.
        mlp_ratio: hidden width of the MLP relative to its width.
        qkv_bias: learn biases of queries, keys and values.
        patch_norm: normalise the patch embedding.
        merge_last: merge after the last stage too (as the paper and MONAI do).
        maps: `"before"` returns each stage's output before merging, through its own norm, and the merged last
            output unchanged (the paper); `"after"` returns the patch embedding and each merged output through
            a norm without parameters (MONAI). Weights trained with one are wrong with the other.
        sliced_bias: use MONAI's position bias in windows that a small grid has shrunk.
        small_grids: how to treat a grid no longer than a window: `"shrink"` takes it whole (MONAI), `"pad"`
            pads it to the window and shifts it (SMIT). Larger grids are treated the same.
        merge_order: key of `MERGE_ORDERS`.
        convs: residual convolutions before the blocks of each stage (MONAI `use_v2`).
        in_channels: channels of the image.
        drop_path: stochastic depth of the last block, growing linearly from 0; training only.
        checkpointing: recompute each block in the backward pass: less memory, about a third more time.
    """

    architecture = "swin"

    def __init__(
        self,
        width: int = 48,
        *,
        depths: tuple[int, ...] = (2, 2, 8, 2),
        heads: tuple[int, ...] = (4, 4, 8, 16),
        window: int = 4,
        patch: int = 2,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = True,
        patch_norm: bool = True,
        merge_last: bool = True,
        maps: str = "before",
        sliced_bias: bool = False,
        small_grids: str = "shrink",
        merge_order: str = "each",
        convs: bool = False,
        in_channels: int = 1,
        drop_path: float = 0.0,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        _check_args(depths, heads, width, maps, small_grids, merge_order)
        widths = [width * 2**i for i in range(len(depths))]
        self.config = dict(
            width=width,
            depths=tuple(depths),
            heads=tuple(heads),
            window=window,
            patch=patch,
            mlp_ratio=mlp_ratio,
            qkv_bias=qkv_bias,
            patch_norm=patch_norm,
            merge_last=merge_last,
            maps=maps,
            sliced_bias=sliced_bias,
        )
        rare: dict[str, Any] = dict(small_grids=small_grids, merge_order=merge_order, convs=convs)
        # only unusual values are stored: configs of other models do not change
        self.config |= {"in_channels": in_channels} if in_channels != 1 else {}
        self.config |= {key: value for key, value in rare.items() if value != USUAL[key]}
        self.maps, self.checkpointing = maps, checkpointing
        self.patch_embed = PatchEmbed(width, patch=patch, norm=patch_norm, in_channels=in_channels)
        rates = iter(torch.linspace(0, drop_path, sum(depths), device="cpu").tolist())
        block: dict[str, Any] = dict(window=window, mlp_ratio=mlp_ratio, qkv_bias=qkv_bias)
        block |= dict(sliced_bias=sliced_bias, pads=small_grids == "pad")
        self.stages: Any = nn.ModuleList()  # of Stage
        for i, (stage_width, depth, count) in enumerate(zip(widths, depths, heads, strict=True)):
            shifts = [window // 2 * (j % 2) for j in range(depth)]
            blocks = [
                Block(stage_width, heads=count, shift=s, drop_path=next(rates), **block) for s in shifts
            ]
            merge = Merge(stage_width, order=merge_order) if merge_last or i < len(depths) - 1 else None
            self.stages.append(Stage(blocks, merge, Conv(stage_width) if convs else None))
        self.norms = nn.ModuleList(nn.LayerNorm(w) for w in widths) if maps == "before" else None
        self.apply(init_weights)
        levels = range(len(depths) + merge_last)
        self.channels, self.strides = tuple(width * 2**i for i in levels), tuple(patch * 2**i for i in levels)

    def forward(self, x: Tensor) -> list[Tensor]:
        return self.encode(self.patch_embed(x))

    def encode(self, tokens: Tensor) -> list[Tensor]:
        """Encode tokens `(B, x, y, z, C0)` of `patch_embed`, masked or not, to feature maps, finest first."""
        return self._run(tokens)[0]

    def forward_intermediates(self, x: Tensor, *, indices: list[int] | None = None) -> list[Tensor]:
        """Return outputs `(B, C, x, y, z)` of the blocks `indices` (default: all; negative counts from the
        end).
        """
        wanted = block_indices(indices, len(self.blocks))
        outputs = self._run(self.patch_embed(x), keep=set(wanted))[1]
        return [outputs[i] for i in wanted]

    def attention(self, x: Tensor, *, block: int) -> WindowAttention:
        """Return the attention weights of one block for an image `(B, 1, X, Y, Z)`."""
        (wanted,) = block_indices([block], len(self.blocks))
        recorded: list[WindowAttention] = []
        tokens = self.patch_embed(x)
        size, first = _grid(tokens), 0
        for stage in self.stages:
            first += len(stage.blocks)
            if wanted < first:
                break
            size = (-(-size[0] // 2), -(-size[1] // 2), -(-size[2] // 2))

        def record(module: nn.Module, inputs: tuple[Tensor, Layout, tuple[int, ...]]) -> None:
            recorded.append(window_attention(module, *inputs, size=size, batch=len(x)))

        handle = self.blocks[wanted].register_forward_pre_hook(record)
        try:
            self._run(tokens, grouped=True)
        finally:
            handle.remove()
        return recorded[0]

    @property
    def blocks(self) -> list[Block]:
        """Return every block in forward order."""
        return [block for stage in self.stages for block in stage.blocks]  # type: ignore[attr-defined]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return which layer each weight belongs to, for `timm.optim.param_groups_layer_decay`."""
        blocks = (r"^stages\.(\d+)", None) if coarse else (r"^stages\.(\d+)\.blocks\.(\d+)", None)
        around = [(r"^stages\.(\d+)\.conv", (-1,)), (r"^stages\.(\d+)\.merge", (999,)), (r"^norms", (99999,))]
        return {"stem": r"^patch_embed", "blocks": [blocks, *around]}

    def _in_groups(self, stage: Stage, tokens: Tensor, keep: set[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the blocks of a stage on rows in the order of their windows; also returns the maps of the blocks `keep`."""
        batch, width, size, kept = int(tokens.shape[0]), tokens.shape[-1], _grid(tokens), {}
        at_once = TRAINED_ROWS if torch.is_grad_enabled() else CHUNK_ROWS
        rows, order = tokens.reshape(-1, width), None  # (B*T, C), order None: grid order
        for number, block in enumerate(stage.blocks):
            plan = layout(size, block.window, block.shift, batch, rows.device, block.pads, at_once)
            rows, order = reorder(rows, order, plan), plan
            windows = shrink(size, block.window, block.shift, block.pads)[0]
            rows = self._call(block, rows, plan, windows)
            if number in keep:
                kept[number] = channels_first(unorder(rows, plan).view(tokens.shape))
        return (rows if order is None else unorder(rows, order)).view(tokens.shape), kept

    def _in_windows(self, stage: Stage, tokens: Tensor, keep: set[int]) -> tuple[Tensor, dict[int, Tensor]]:
        """Run the blocks of a stage on the grid, rolled and masked; also returns the maps of the blocks `keep`."""
        kept = {}
        for number, block in enumerate(stage.blocks):
            plan = rolled(_grid(tokens), block.window, block.shift, tokens.device, block.pads)
            tokens = self._call(block, tokens, plan, plan.windows)
            if number in keep:
                kept[number] = channels_first(tokens)
        return tokens, kept

    def _call(self, block: Block, *inputs: Any) -> Tensor:
        return recompute(block, *inputs) if self.checkpointing and torch.is_grad_enabled() else block(*inputs)

    def _run(
        self, tokens: Tensor, keep: set[int] | None = None, *, grouped: bool = False
    ) -> tuple[list[Tensor], dict[int, Tensor]]:
        maps, kept, number = ([plain_norm(tokens)] if self.maps == "after" else []), {}, 0
        for i, stage in enumerate(self.stages):
            if stage.conv is not None:
                tokens = stage.conv(tokens)
            run = self._in_groups if grouped or prefers_groups(tokens) else self._in_windows
            tokens, outputs = run(stage, tokens, {k - number for k in keep or ()})
            kept |= {number + k: output for k, output in outputs.items()}
            number += len(stage.blocks)
            if self.norms is not None:
                maps.append(channels_first(self.norms[i](tokens)))
            if stage.merge is not None:
                tokens = stage.merge(tokens)
                if self.maps == "after":
                    maps.append(plain_norm(tokens))
        if self.maps == "after":
            return [channels_first(m) for m in maps], kept
        return maps + ([channels_first(tokens)] if self.stages[-1].merge is not None else []), kept


def prefers_groups(tokens: Tensor) -> bool:
    """Return whether groups of windows are faster than whole windows that are rolled and masked.

    Groups save arithmetic and memory, of which a processor has little; a GPU waits for their many small operations. What
    is exported is what a processor runs.
    """
    return tokens.device.type == "cpu" or leaves_python()


def _grid(tokens: Tensor) -> tuple[int, int, int]:
    """Return the token grid as plain numbers: `torch.jit.trace` makes tensors of them, which no layout is for."""
    _, x, y, z, _ = tokens.shape
    return int(x), int(y), int(z)


def plain_norm(tokens: Tensor) -> Tensor:
    return F.layer_norm(tokens, tokens.shape[-1:])
