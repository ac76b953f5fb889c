"""A U-shaped decoder for any encoder (UNETR, arXiv 2103.10504): maps as skips, convolutions where there are
none.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORM = ("instance", {"affine": True})


class Unetr(nn.Module):
    """Decoder levels at strides 1, 2, 4 ... to the deepest map.

    A map is the skip at its own stride; maps that share a stride (ViT) are upsampled to the next finer free
    levels; levels without a map get a skip from convolutions on the image.

    Args:
        channels: channels of the encoder's maps.
        strides: strides of the encoder's maps, powers of two.
        classes: number of classes, including the background.
        width: channels at full resolution; they double with each level, at most to those of the deepest map.
    """

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        width: int = 16,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        self.skip_level = skip_levels(strides, head="unetr")  # of each map but the deepest
        self.levels = strides[-1].bit_length() - 1  # level k has stride 2**k
        self.widths = [min(width * 2**k, channels[-1]) for k in range(self.levels)]
        self.skips = nn.ModuleList()
        for level, c, s in list(zip(self.skip_level, channels, strides, strict=False))[::-1]:
            if level is not None:
                ups = s.bit_length() - 1 - level
                layers: list[nn.Module] = [_block(c, self.widths[level])]
                layers += [
                    nn.ConvTranspose3d(self.widths[level], self.widths[level], 2, 2) for _ in range(ups)
                ]
                self.skips.append(nn.Sequential(*layers))
        taken = {level for level in self.skip_level if level is not None}
        finest = min(taken, default=self.levels)
        self.stem = nn.ModuleList()  # levels 0 .. finest - 1, from the image
        for k in range(max(finest, 1)):
            self.stem.append(
                _block(in_channels, width) if k == 0 else _block(self.widths[k - 1], self.widths[k], stride=2)
            )
        self.up = nn.ModuleList()
        self.fuse = nn.ModuleList()
        below = channels[-1]
        for k in reversed(range(self.levels)):
            sources = 1 + (k in taken) + (k < len(self.stem))
            self.up.append(nn.ConvTranspose3d(below, self.widths[k], 2, 2))
            self.fuse.append(_block(sources * self.widths[k], self.widths[k]))
            below = self.widths[k]
        self.out = nn.Conv3d(below, classes, 1)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Return logits `(B, classes, X, Y, Z)` from the image `(B, 1, X, Y, Z)` and the encoder's maps."""
        size, full = image.shape[2:], [n * 2**self.levels for n in maps[-1].shape[2:]]
        pads = [p for n, f in zip(reversed(size), reversed(full), strict=True) for p in (0, f - n)]
        sources: dict[int, list[Tensor]] = {k: [] for k in range(self.levels)}
        x = F.pad(image, pads)
        for k, block in enumerate(self.stem):
            x = block(x)
            sources[k].append(x)
        skips = iter(self.skips)
        for level, features in zip(reversed(self.skip_level), reversed(maps[:-1]), strict=True):
            if level is not None:
                sources[level].append(next(skips)(features))
        x = maps[-1]
        for k, up, fuse in zip(reversed(range(self.levels)), self.up, self.fuse, strict=True):
            x = up(x)
            x = fuse(torch.cat([x, *(fit(s, x.shape[2:]) for s in sources[k])], 1))
        return self.out(x)[..., : size[0], : size[1], : size[2]]


def _block(inside: int, outside: int, *, stride: int = 1) -> nn.Module:
    from monai.networks.blocks.dynunet_block import UnetResBlock  # seconds, which other heads do not need

    return UnetResBlock(3, inside, outside, kernel_size=3, stride=stride, norm_name=NORM)


def skip_levels(strides: tuple[int, ...], *, head: str) -> list[int | None]:
    """Return the level (of stride `2**level`) that each map but the deepest serves: its own, or the next
    finer free one.

    Args:
        strides: strides of the encoder's maps, finest first.
        head: name of the head, for the message.

    Raises:
        ValueError: a stride is not a power of two.

    >>> skip_levels((8, 8, 8), head="unetr")
    [1, 2]
    """
    if any(s & (s - 1) for s in strides) or strides[-1] < 2:
        raise ValueError(
            f"head {head!r} needs strides that are powers of two, got {strides}; head 'linear' takes any"
        )
    levels: list[int | None] = []
    free = strides[-1].bit_length() - 1
    for s in strides[-2::-1]:
        level = min(s.bit_length() - 1, free - 1)
        free = level if level >= 0 else free
        levels.insert(0, level if level >= 0 else None)
    return levels


def fit(x: Tensor, size: Sequence[int]) -> Tensor:
    """Pad with zeros at the far border to `size` (the deepest map rounds sizes up further than the finer
    ones).
    """
    if list(x.shape[2:]) == list(size):
        return x
    pads = [p for n, want in zip(reversed(x.shape[2:]), reversed(size), strict=True) for p in (0, want - n)]
    return F.pad(x, pads)
