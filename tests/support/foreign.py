"""Other people's encoders for the tests: what they compute, written from their publications or with their own libraries."""

import itertools

import torch
from monai.networks.nets.swin_unetr import PatchMerging
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F

SMIT_ORDER = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 1, 1)]


def randomise(module: nn.Module) -> nn.Module:
    """Every weight random, norms and position bias tables too, so that nothing hides behind a zero or a one."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            if "relative_position_bias_table" in name:
                p.normal_(std=0.5)
            elif p.ndim == 1:
                p.normal_(1.0 if name.endswith("weight") else 0.0, 0.2)
            else:
                p.normal_(std=p[0].numel() ** -0.5)
    return module.eval()


def smit_state(width: int, depths, heads, window: int, *, qkv_bias: bool) -> dict[str, torch.Tensor]:
    """Random weights under SMIT's encoder keys (paper.md 3.5)."""
    g = torch.Generator().manual_seed(0)

    def matrix(out: int, into: int) -> torch.Tensor:
        return torch.randn(out, into, generator=g) * into**-0.5

    def norm(name: str, size: int) -> dict[str, torch.Tensor]:
        return {
            f"{name}.weight": 1 + 0.2 * torch.randn(size, generator=g),
            f"{name}.bias": 0.2 * torch.randn(size, generator=g),
        }

    def bias(name: str, size: int) -> dict[str, torch.Tensor]:
        return {f"{name}.bias": 0.2 * torch.randn(size, generator=g)}

    state = {
        "patch_embed.proj.weight": matrix(width, 8).view(width, 1, 2, 2, 2),
        **bias("patch_embed.proj", width),
    }
    state |= norm("patch_embed.norm", width) | {"mask_token": torch.zeros(1, 1, width)}
    places = torch.cartesian_prod(*[torch.arange(window)] * 3)
    delta = places[:, None] - places[None] + window - 1
    index = (delta[..., 0] * (2 * window - 1) + delta[..., 1]) * (2 * window - 1) + delta[..., 2]
    for i, (depth, count) in enumerate(zip(depths, heads, strict=True)):
        c = width * 2**i
        for j in range(depth):
            b = f"layers.{i}.blocks.{j}"
            state |= norm(f"{b}.norm1", c) | norm(f"{b}.norm2", c)
            state[f"{b}.attn.relative_position_bias_table"] = 0.5 * torch.randn(
                (2 * window - 1) ** 3, count, generator=g
            )
            state[f"{b}.attn.relative_position_index"] = index
            state |= {f"{b}.attn.qkv.weight": matrix(3 * c, c), f"{b}.attn.proj.weight": matrix(c, c)}
            state |= {f"{b}.mlp.fc1.weight": matrix(4 * c, c), f"{b}.mlp.fc2.weight": matrix(c, 4 * c)}
            state |= bias(f"{b}.attn.proj", c) | bias(f"{b}.mlp.fc1", 4 * c) | bias(f"{b}.mlp.fc2", c)
            state |= bias(f"{b}.attn.qkv", 3 * c) if qkv_bias else {}
        state |= norm(f"layers.{i}.downsample.norm", 8 * c) | {
            f"layers.{i}.downsample.reduction.weight": matrix(2 * c, 8 * c)
        }
        state |= norm(f"norm{i}", c)
    return state


def smit_features(state: dict[str, torch.Tensor], x: torch.Tensor, *, window: int) -> list[torch.Tensor]:
    """What SMIT's Swin computes: norm_i of every stage before merging, and the raw bottleneck. Pad, roll, window, mask.

    The windows of its blocks never shrink, and odd blocks are shifted by half a window, on any grid.
    """
    x = F.conv3d(x, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=2).permute(
        0, 2, 3, 4, 1
    )
    x, maps = _norm(state, "patch_embed.norm", x), []
    for i in itertools.count():
        if f"layers.{i}.blocks.0.norm1.weight" not in state:
            break
        for j in itertools.count():
            if f"layers.{i}.blocks.{j}.norm1.weight" not in state:
                break
            x = _smit_block(state, f"layers.{i}.blocks.{j}", x, window, window // 2 if j % 2 else 0)
        maps.append(_norm(state, f"norm{i}", x).permute(0, 4, 1, 2, 3))
        near = torch.cat([x[:, a::2, b::2, c::2] for a, b, c in SMIT_ORDER], -1)
        x = (
            _norm(state, f"layers.{i}.downsample.norm", near)
            @ state[f"layers.{i}.downsample.reduction.weight"].t()
        )
    return [*maps, x.permute(0, 4, 1, 2, 3)]


def _norm(state, name, x):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def _linear(state, name, x):
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def _cut(x, w):
    """`(B, X, Y, Z, C)` -> windows `(n, w^3, C)`."""
    b, nx, ny, nz, c = x.shape
    return (
        x.view(b, nx // w, w, ny // w, w, nz // w, w, c).permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, w**3, c)
    )


def _smit_block(state, name, x, w, shift):
    size = x.shape[1:4]
    pads = [-n % w for n in size]
    y = F.pad(_norm(state, f"{name}.norm1", x), (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
    y = torch.roll(y, (-shift,) * 3, (1, 2, 3))
    padded = y.shape[1:4]
    windows = _cut(y, w)
    n, t, c = windows.shape
    table = state[f"{name}.attn.relative_position_bias_table"]
    heads = table.shape[1]
    q, k, v = (
        _linear(state, f"{name}.attn.qkv", windows).view(n, t, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    )
    logits = q * (c // heads) ** -0.5 @ k.transpose(-2, -1)
    logits = logits + table[state[f"{name}.attn.relative_position_index"].flatten()].view(
        t, t, heads
    ).permute(2, 0, 1)
    if shift:
        regions = [(torch.arange(m) >= m - w).int() + (torch.arange(m) >= m - shift).int() for m in padded]
        region = regions[0][:, None, None] * 9 + regions[1][None, :, None] * 3 + regions[2]
        own = _cut(region[None, ..., None], w)[..., 0]
        mask = torch.where(own[:, :, None] == own[:, None], 0.0, -100.0)  # (windows of one image, t, t)
        logits = logits.view(-1, len(mask), heads, t, t).add(mask[:, None]).view(n, heads, t, t)
    y = _linear(state, f"{name}.attn.proj", (logits.softmax(-1) @ v).transpose(1, 2).reshape(n, t, c))
    y = (
        y.view(len(x), *(m // w for m in padded), w, w, w, c)
        .permute(0, 1, 4, 2, 5, 3, 6, 7)
        .reshape(len(x), *padded, c)
    )
    y = torch.roll(y, (shift,) * 3, (1, 2, 3))[:, : size[0], : size[1], : size[2]]
    x = x + y
    hidden = F.gelu(_linear(state, f"{name}.mlp.fc1", _norm(state, f"{name}.norm2", x)))
    return x + _linear(state, f"{name}.mlp.fc2", hidden)


class OldPatchMerging(PatchMerging):
    """MONAI's "merging" before 1.5: 010 and 001 twice, 110 and 011 never."""

    def forward(self, x):
        _, d, h, w, _ = x.shape
        x = F.pad(x, (0, 0, 0, w % 2, 0, h % 2, 0, d % 2))
        order = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1), (1, 1, 1)]
        return self.reduction(self.norm(torch.cat([x[:, i::2, j::2, k::2] for i, j, k in order], -1)))


class Embed3d(nn.Module):
    """A 3D patch embedding for timm's ViT."""

    def __init__(self, img_size, patch_size, in_chans, embed_dim, bias=True, **_) -> None:
        super().__init__()
        self.proj = nn.Conv3d(in_chans, embed_dim, patch_size, patch_size, bias=bias)
        self.num_patches = (img_size // patch_size) ** 3

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


def timm_vit(size: int, **args) -> VisionTransformer:
    """A 3D ViT of timm's own blocks."""
    return VisionTransformer(
        img_size=size,
        patch_size=16,
        in_chans=1,
        num_classes=3,
        embed_dim=48,
        depth=3,
        num_heads=4,
        embed_layer=Embed3d,
        **args,
    )
