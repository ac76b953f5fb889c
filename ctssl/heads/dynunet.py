"""nnU-Net's network (MONAI's DynUNet), the baseline for every claim. A whole network, not a decoder."""

from torch import Tensor, nn
from torch.nn import functional as F

WIDEST = 320


class DynUnet(nn.Module):
    """nnU-Net on the image alone: use it with the encoder `pixels`, as `ctssl finetune --model dynunet` does.

    Kernels and strides follow nnU-Net's rule for isotropic voxels: kernels of 3, halving while 4 voxels are
    left of the crop; channels double from 32 (`base`) to 320; plain convolutions with instance norm; deep supervision
    on three levels.

    Args:
        channels: those of `pixels`, which are the image's.
        strides: (1,), those of `pixels`.
        classes: number of classes, including the background.
        crop: side of the training crops in voxels.
        in_channels: channels of the image.
    """

    whole = True
    base = 32

    def __init__(
        self,
        channels: tuple[int, ...],
        strides: tuple[int, ...],
        classes: int,
        *,
        crop: int = 64,
        in_channels: int = 1,
    ) -> None:
        from monai.networks.nets.dynunet import DynUNet  # seconds, which other heads do not need

        super().__init__()
        if tuple(strides) != (1,) or tuple(channels) != (in_channels,):
            raise ValueError(
                "head 'dynunet' is a whole network and would ignore the encoder; train it with --model "
                "dynunet, or use head 'light' or 'unetr' with this encoder"
            )
        if crop < 16:
            raise ValueError(f"invalid crop={crop}; nnU-Net's network needs crops of 16 voxels or more")
        halvings = 0
        while crop // 2 ** (halvings + 1) >= 4 and halvings < 5:
            halvings += 1
        steps = [1] + [2] * halvings
        self.multiple = 2**halvings
        net = DynUNet(
            3,
            in_channels,
            classes,
            kernel_size=[3] * len(steps),
            strides=steps,
            upsample_kernel_size=steps[1:],
            filters=[min(self.base * 2**k, WIDEST) for k in range(len(steps))],
            deep_supervision=True,
            deep_supr_num=max(1, min(2, halvings - 1)),
        )
        self.down = nn.ModuleList(
            [net.input_block, *net.downsamples]
        )  # MONAI's network holds each block twice,
        self.bottleneck, self.up = net.bottleneck, net.upsamples  # which safetensors cannot store
        self.out, self.heads = net.output_block, net.deep_supervision_heads

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Return logits `(B, classes, X, Y, Z)` of the image `(B, in_channels, X, Y, Z)`."""
        return self.deep(image, maps)[0][1]

    def deep(self, image: Tensor, maps: list[Tensor]) -> list[tuple[float, Tensor]]:
        """Return weights that sum to 1 and logits at full resolution: the final ones, then those of coarser
        levels.
        """
        x, y, z = image.shape[2:]
        features = F.pad(image, [p for n in (z, y, x) for p in (0, -n % self.multiple)])
        size, skips, levels = features.shape[2:], [], []
        for block in self.down:
            features = block(features)
            skips.append(features)
        features = self.bottleneck(features)
        for block, skip in zip(self.up, reversed(skips), strict=True):
            features = block(features, skip)
            levels.append(features)
        logits = [self.out(levels[-1])]
        if self.training:
            coarser = zip(self.heads, reversed(levels[:-1]), strict=False)
            logits += [F.interpolate(head(level), size) for head, level in coarser]
        total = sum(0.5**k for k in range(len(logits)))
        return [(0.5**k / total, one[..., :x, :y, :z]) for k, one in enumerate(logits)]


class DynUnet16(DynUnet):
    """`DynUnet` with half of the channels (1.4 million parameters for crops of 32 voxels): a CPU trains it in hours."""

    base = 16


class DynUnet8(DynUnet):
    """`DynUnet` with a quarter of the channels (0.35 million parameters for crops of 32 voxels)."""

    base = 8
