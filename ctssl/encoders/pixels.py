"""The empty encoder: its only map is the image. A head that is a whole network trains on it like any other
model.
"""

from typing import Any

from torch import Tensor, nn

from ctssl.encoders.pretrained import Pretrained


class Pixels(nn.Module, Pretrained):
    """Return the image as the only map: `(B, in_channels, X, Y, Z)` -> `[x]`."""

    architecture = "pixels"
    strides = (1,)

    def __init__(self, *, in_channels: int = 1) -> None:
        super().__init__()
        self.channels = (in_channels,)
        self.config: dict[str, Any] = {"in_channels": in_channels} if in_channels != 1 else {}
        self.patch_embed = nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]
