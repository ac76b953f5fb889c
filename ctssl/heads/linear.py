"""The simplest head: what a linear map of the features knows about the classes."""

from torch import Tensor, nn

from ctssl.encoders.layers import upsample


class Linear(nn.Module):
    """Apply a 1x1x1 convolution to each map, interpolate to full resolution, and sum."""

    def __init__(
        self, channels: tuple[int, ...], strides: tuple[int, ...], classes: int, *, in_channels: int = 1
    ) -> None:
        super().__init__()
        self.project = nn.ModuleList(nn.Conv3d(c, classes, 1) for c in channels)
        self.strides = strides

    def forward(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """Return logits `(B, classes, X, Y, Z)` from the image `(B, 1, X, Y, Z)` and the encoder's maps."""
        size = image.shape[2:]
        total = None
        for project, stride, features in zip(self.project, self.strides, maps, strict=True):
            logits = project(features)
            logits = upsample(logits, tuple(n * stride for n in logits.shape[2:]))
            logits = logits[..., : size[0], : size[1], : size[2]]
            total = logits if total is None else total + logits
        assert total is not None
        return total
