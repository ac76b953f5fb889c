"""Swin UNETR's decoder (arXiv 2201.01266), also the paper's: residual blocks as skips, many channels
everywhere.
"""

from torch import Tensor, nn

from ctssl.heads.unetr import fit, skip_levels


class SwinUnetr(nn.Module):
    """Decoder levels at strides 1, 2, 4 ... above the deepest map, each with a residual block on its skip.

    On maps of strides 2, 4, 8, 16, 32 it equals MONAI's `SwinUNETR` and the paper's network (arXiv
    2405.08657); which of the two depends on the encoder, whose maps are taken after (MONAI) or before merging
    (the paper). The map next to the deepest is used as a skip unchanged. On other strides the pattern
    continues: channels halve with each finer level, full resolution has as many as stride 2, a level without
    a map gets its skip from patches of the image, and maps that share a stride (ViT) are upsampled to the
    finer levels.
    """

    def __init__(
        self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, *, in_channels: int = 1
    ) -> None:
        from monai.networks.blocks.unetr_block import UnetrUpBlock  # seconds, which other heads do not need

        super().__init__()
        self.at = skip_levels(strides, head="swin-unetr")
        self.strides = [
            2**k for k in range(strides[-1].bit_length() - 1)
        ]  # of the levels: 1, 2 ... deepest / 2
        finest = channels[0] / strides[0]
        widths = [max(8, round(finest * max(s, 2))) for s in self.strides]
        self.skips = nn.ModuleList(
            _of_image(in_channels, w, s) for w, s in zip(widths, self.strides, strict=True)
        )
        for level, c, stride in zip(self.at, channels, strides, strict=False):
            if level is not None:
                ups = stride.bit_length() - 1 - level
                raw = level == len(widths) - 1 and ups == 0 and c == widths[level]
                self.skips[level] = nn.Identity() if raw else _raised(c, widths[level], ups)
        self.bottom = _block(channels[-1], channels[-1])
        below = [*widths[1:], channels[-1]]
        self.ups = nn.ModuleList(
            UnetrUpBlock(3, i, o, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True)
            for i, o in zip(below, widths, strict=True)
        )
        self.out = nn.Conv3d(widths[0], classes, 1)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Return logits `(B, classes, X, Y, Z)` from the image `(B, 1, X, Y, Z)` and the encoder's maps."""
        if maps[-1].shape[2:].numel() == 1:
            raise ValueError(
                f"crop {tuple(image.shape[2:])} is too small: this head normalises over the deepest map, "
                f"which has only one voxel; use crops of more than {2 * self.strides[-1]} voxels along "
                "some axis"
            )
        size = image.shape[2:]
        full = [n * 2 * self.strides[-1] for n in maps[-1].shape[2:]]
        whole = fit(image, full)
        sources: list[Tensor] = [whole] * len(self.strides)
        for level, features in zip(self.at, maps[:-1], strict=True):
            if level is not None:
                sources[level] = features
        x = self.bottom(maps[-1])
        for level in reversed(range(len(self.strides))):
            skip = self.skips[level](sources[level])
            x = self.ups[level](x, fit(skip, [2 * n for n in x.shape[2:]]))
        return self.out(x)[..., : size[0], : size[1], : size[2]]


def _block(inside: int, outside: int) -> nn.Module:
    from monai.networks.blocks.unetr_block import UnetrBasicBlock

    return UnetrBasicBlock(3, inside, outside, kernel_size=3, stride=1, norm_name="instance", res_block=True)


def _of_image(channels: int, width: int, stride: int) -> nn.Module:
    """Return the skip of a level without a map: patches of the image."""
    if stride == 1:
        return _block(channels, width)
    return nn.Sequential(nn.Conv3d(channels, width, stride, stride), _block(width, width))


def _raised(inside: int, outside: int, ups: int) -> nn.Module:
    """Return a block followed by `ups` doublings of the grid."""
    return nn.Sequential(
        _block(inside, outside), *(nn.ConvTranspose3d(outside, outside, 2, 2) for _ in range(ups))
    )
