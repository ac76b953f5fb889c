"""The encoders and their common interface.

An encoder is an `nn.Module` with

- `patch_embed(x)`: image `(B, 1, X, Y, Z)` -> token grid `(B, x, y, z, C0)`;
- `encode(tokens)`: token grid -> feature maps, finest first, map i of shape `(B, channels[i], ceil(X /
  strides[i]), ...)`. Positions are added here, after any masking;
- `forward(x)`: `encode(patch_embed(x))`; `channels`, `strides`: one number per map;
- `forward_intermediates(x, indices=...)`: output `(B, C, x, y, z)` of any block; `attention(x, block=...)`;
- timm's names (`ctssl/encoders/backbone.py`): `num_features`, `feature_info`, `forward_features`, `group_matcher`, ...;
- `config`: the arguments that it was built with; `architecture`: its key in `ENCODERS`.

Sizes that are not multiples of a stride are padded. There is no mask token and no projection head: those
belong to a pretraining task, so the state dict of a trained encoder is the released file.

To add one: write `ctssl/encoders/<name>.py` and add a line to `ENCODERS`. What they share: `pretrained` (embed, save, share),
`backbone` (timm's names), `layers`, `attention`. `swin_blocks` and `windows` are parts of the Swin; `pixels` is the empty
encoder of a head that is a whole network.
"""

from typing import Any

from ctssl.encoders.swin import Swin
from ctssl.encoders.vit import ViT

ENCODERS = {"swin": Swin, "vit": ViT}


def plain_args(stored: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of an encoder as it takes them, from JSON, which has lists for tuples.

    >>> plain_args({"width": 24, "depths": [1, 2]})
    {'width': 24, 'depths': (1, 2)}
    """
    return {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
