"""The empty encoder: its only map is the image. A head that is a whole network trains on it like any other
model.
"""

from typing import Any

from torch import Tensor, nn

from ctssl.encoders.pretrained import Pretrained


class Pixels(nn.Module, Pretrained):
    """Return the image as the only map: `(B, 1, X, Y, Z)` -> `[x]`."""

    architecture = "pixels"
    channels, strides = (1,), (1,)

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.patch_embed = nn.Identity()

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x]
