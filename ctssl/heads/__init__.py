"""The segmentation heads and their common interface.

A head is an `nn.Module`: `Head(channels, strides, classes)`, with the channels and strides of the encoder's
maps; `forward(image (B, 1, X, Y, Z), maps) -> logits (B, classes, X, Y, Z)` at full resolution, for any size.
It knows nothing else about the encoder. A head with deep supervision also has `deep(image, maps)`: weights
and logits of all levels. A head that is a whole network of its own sets `whole = True` and also takes `crop`,
the side of the training crops in voxels. A head for images of several channels also takes `in_channels`.

To add one: write `ctssl/heads/<name>.py` and add a line to `HEADS`. `segmenter` joins an encoder and a head; `ensemble`
averages several segmenters.
"""

from ctssl.heads.dynunet import DynUnet, DynUnet8, DynUnet16
from ctssl.heads.light import Light
from ctssl.heads.linear import Linear
from ctssl.heads.swin_unetr import SwinUnetr
from ctssl.heads.unetr import Unetr

HEADS = {
    "dynunet": DynUnet,
    "dynunet-8": DynUnet8,
    "dynunet-16": DynUnet16,
    "light": Light,
    "linear": Linear,
    "smit": SwinUnetr,
    "swin-unetr": SwinUnetr,
    "unetr": Unetr,
}
"""Every head by name. `smit`, the paper's decoder, is Swin UNETR's; they differ in the encoder's maps."""

WHOLE = tuple(name for name, head in HEADS.items() if getattr(head, "whole", False))
"""The heads that are whole networks: baselines for `ctssl finetune --model`."""
