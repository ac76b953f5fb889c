"""The segmentation heads and what they have in common.

A head is an `nn.Module`: `Head(channels, strides, classes)`, with what an encoder says of its maps;
`forward(image (B, 1, X, Y, Z), maps) -> logits (B, classes, X, Y, Z)` at full resolution, for sizes of any
kind. It knows nothing else of the encoder. A head with deep supervision has `deep(image, maps)` too: weights
and logits of all levels. One that is a whole network of its own says so (`whole = True`) and also takes
`crop`, voxels along each side of the crops.

To add one: write `ctssl/heads/<name>.py` and add a line to `HEADS`.
"""

from ctssl.heads.dynunet import DynUnet
from ctssl.heads.light import Light
from ctssl.heads.linear import Linear
from ctssl.heads.swin_unetr import SwinUnetr
from ctssl.heads.unetr import Unetr

HEADS = {
    "dynunet": DynUnet,
    "light": Light,
    "linear": Linear,
    "smit": SwinUnetr,
    "swin-unetr": SwinUnetr,
    "unetr": Unetr,
}
"""`smit`, the paper's decoder, is Swin UNETR's: the two differ in the maps that the encoder gives them."""
