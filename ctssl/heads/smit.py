"""The paper's decoder: Swin UNETR's, with 48 channels at full resolution and skips taken before merging."""

from monai.networks.blocks.unetr_block import UnetrBasicBlock, UnetrUpBlock
from torch import Tensor, nn
from torch.nn import functional as F


class Smit(nn.Module):
    """Residual blocks on the image and on maps 0, 1, 2 and 4; map 3 is a skip as it is (arXiv 2405.08657).

    For a Swin with patch 2, four stages and a merging after each: strides 2, 4, 8, 16, 32, channels doubling.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int) -> None:
        super().__init__()
        f = channels[0]
        if tuple(strides) != (2, 4, 8, 16, 32) or tuple(channels) != tuple(f * 2**i for i in range(5)):
            raise ValueError(f"head 'smit' is the paper's decoder and needs maps of strides (2, 4, 8, 16, 32) with doubling "
                             f"channels, got strides {strides}, channels {channels}; head 'unetr' takes any encoder")  # fmt: skip
        self.encoder1, self.encoder2, self.encoder3, self.encoder4, self.encoder10 = (
            UnetrBasicBlock(3, i, o, kernel_size=3, stride=1, norm_name="instance", res_block=True)
            for i, o in ((1, f), (f, f), (2 * f, 2 * f), (4 * f, 4 * f), (16 * f, 16 * f))
        )
        self.decoder5, self.decoder4, self.decoder3, self.decoder2, self.decoder1 = (
            UnetrUpBlock(3, i, o, kernel_size=3, upsample_kernel_size=2, norm_name="instance", res_block=True)
            for i, o in ((16 * f, 8 * f), (8 * f, 4 * f), (4 * f, 2 * f), (2 * f, f), (f, f))
        )
        self.out = nn.Conv3d(f, classes, 1)

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Logits `(B, classes, X, Y, Z)` from the image `(B, 1, X, Y, Z)` and the encoder's maps of it."""
        if maps[4].shape[2:].numel() == 1:
            raise ValueError(
                f"head 'smit' normalises over the deepest map, which has one voxel for an image of {tuple(image.shape[2:])}; "
                "give crops of more than 32 voxels along some axis"
            )
        size, full = image.shape[2:], [n * 32 for n in maps[-1].shape[2:]]

        def whole(x: Tensor, stride: int) -> Tensor:  # sizes that are no multiple of 32: zeros at the far border
            pads = [p for n, f in zip(reversed(x.shape[2:]), reversed(full), strict=True) for p in (0, f // stride - n)]
            return F.pad(x, pads) if any(pads) else x

        one = self.encoder1(whole(image, 1))
        two, four, eight = (whole(m, 2 ** (i + 1)) for i, m in enumerate(maps[:3]))
        x = self.decoder5(self.encoder10(maps[4]), whole(maps[3], 16))
        x = self.decoder4(x, self.encoder4(eight))
        x = self.decoder3(x, self.encoder3(four))
        x = self.decoder2(x, self.encoder2(two))
        return self.out(self.decoder1(x, one))[..., : size[0], : size[1], : size[2]]
