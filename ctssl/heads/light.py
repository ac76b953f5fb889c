"""The default head: a decoder that trains on a laptop. At most 2 M parameters, no full-resolution
convolution.
"""

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ctssl.encoders.layers import upsample


class Light(nn.Module):
    """Decoder from the deepest map upwards in factors of two; each map is added at its stride, the image by a
    strided stem.

    The last level works at stride 2 and predicts for each of its cells the eight voxels in it (sub-pixel
    convolution, arXiv 1609.05158): a U-shaped decoder spends half of its time on a few channels at full
    resolution.

    Args:
        channels: channels of the encoder's maps.
        strides: strides of the encoder's maps, powers of two.
        classes: number of classes, including the background.
        width: channels at stride 2; they double with each level, up to `top`.
        top: largest number of channels.
        in_channels: channels of the image.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        width: int = 16,
        top: int = 96,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        if any(s & (s - 1) or s < 2 for s in strides):
            raise ValueError(
                f"head 'light' needs strides that are powers of two, got {strides}; head 'linear' takes any"
            )
        self.levels = [2**k for k in range(strides[-1].bit_length() - 1, 0, -1)]  # deepest stride .. 2
        widths = {s: min(width * s // 2, top) for s in self.levels}
        self.at = [self.levels.index(s) for s in strides]
        self.project = nn.ModuleList(
            nn.Conv3d(c, widths[s], 1) for c, s in zip(channels, strides, strict=True)
        )
        self.stem = nn.Sequential(
            nn.Conv3d(in_channels, width, 4, stride=2, padding=1), *_norm(width), _conv(width, width)
        )
        self.fuse = nn.ModuleList(_Fuse(widths[s]) for s in self.levels)
        coarser = list(zip(self.levels[:-1], self.levels[1:], strict=True))
        self.narrow = nn.ModuleList(nn.Conv3d(widths[a], widths[b], 1) for a, b in coarser)
        self.finish = nn.Sequential(*_norm(width), nn.Conv3d(width, 8 * classes, 3, padding=1))

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Return logits `(B, classes, X, Y, Z)` from the image `(B, 1, X, Y, Z)` and the encoder's maps."""
        size = image.shape[2:]
        even = F.pad(image, [p for n in reversed(size) for p in (0, n % 2)])
        sums: list[Tensor | None] = [None] * len(self.levels)
        for level, project, features in zip(self.at, self.project, maps, strict=True):
            sums[level] = _add(sums[level], project(features))
        sums[-1] = _add(sums[-1], self.stem(even))
        x = self.fuse[0](sums[0])
        for narrow, fuse, skip in zip(self.narrow, self.fuse[1:], sums[1:], strict=True):
            x = upsample(narrow(x), tuple(2 * n for n in x.shape[2:]))
            x = fuse(x if skip is None else _add(x, skip))
        cells = self.finish(x)  # (B, classes * 8, X / 2, Y / 2, Z / 2)
        voxels = rearrange(cells, "b (c i j k) x y z -> b c (x i) (y j) (z k)", i=2, j=2, k=2)
        return _cut(voxels, list(size))


class _Fuse(nn.Module):
    """Norm and convolution, twice, with a residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*_norm(width), _conv(width, width), *_norm(width), _conv(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _norm(width: int) -> list[nn.Module]:
    return [nn.GroupNorm(min(8, width), width), nn.GELU()]


def _conv(inside: int, outside: int) -> nn.Module:
    return nn.Conv3d(inside, outside, 3, padding=1, bias=False)


def _add(x: Tensor | None, y: Tensor) -> Tensor:
    """Return the sum on the smaller of the two grids: a coarser map extends further into the padding."""
    if x is None:
        return y
    size = [min(a, b) for a, b in zip(x.shape[2:], y.shape[2:], strict=True)]
    return _cut(x, size) + _cut(y, size)


def _cut(x: Tensor, size: list[int]) -> Tensor:
    return x if list(x.shape[2:]) == size else x[..., : size[0], : size[1], : size[2]]
