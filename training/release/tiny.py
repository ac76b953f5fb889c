"""Write the tiny random models for tests of other software: `python -m training.release.tiny`.

`ctssl.load("swin-tiny-random")` and `ctssl.load("vit-tiny-random")` load in milliseconds, have the strides of the published
encoders, and know nothing. They are no models of `ctssl list`.
"""

from pathlib import Path

import torch

import ctssl
from ctssl.encoders import ENCODERS
from ctssl.encoders.pretrained import encoder_config
from ctssl.hub.folder import write_folder
from ctssl.hub.lookup import TINY
from ctssl.zoo import ModelSpec

SIZES = {
    "swin": dict(width=12, depths=(1, 1, 1), heads=(1, 2, 4), window=4, patch=4, merge_last=False),
    "vit": dict(width=24, depth=2, heads=2, patch=8, grid=(4, 4, 4), maps=2),
}


def main(folder: Path = TINY) -> None:
    for kind, sizes in SIZES.items():
        torch.manual_seed(0)
        name = f"{kind}-tiny-random"
        encoder = ENCODERS[kind](**sizes)
        for parameter in encoder.parameters():
            parameter.data = parameter.data.half().float()
        encoder.spec = ModelSpec(name, "encoder", kind, licence="CC0-1.0", data="none: random weights")
        write_folder(encoder, folder / name, encoder_config(encoder, name=name), half=True, overwrite=True)
        print(name, sum(p.numel() for p in ctssl.load(name).parameters()))


if __name__ == "__main__":
    main()
