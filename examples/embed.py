"""Embed a scan as one vector: `python examples/embed.py [SCAN]` (default: the phantom)."""

import sys

import ctssl
from ctssl.phantom import phantom


def main(scan: str | None = None) -> None:
    volume = ctssl.read(scan) if scan else phantom()[0]  # NIfTI, DICOM folder, or (array in HU, affine)
    encoder = ctssl.load("vit-wild-lesions")

    vector = encoder.embed(volume)
    print(f"{volume.name}: {tuple(vector.shape)} features, the first {vector[:3].tolist()}")

    x = encoder.preprocess(volume)[..., :96, :96, :96]  # (1, 1, X, Y, Z): RAS+, 1.5 mm, 0..1
    for features, stride in zip(encoder(x), encoder.strides, strict=True):
        print(f"map at stride {stride}: {tuple(features.shape)}")
    deep = encoder.forward_intermediates(x, indices=[-1])[0]
    attention = encoder.attention(x, block=-1)  # (1, heads, tokens, tokens); a Swin has one for each window
    print(f"last block: {tuple(deep.shape)}, attention {tuple(attention.shape)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
