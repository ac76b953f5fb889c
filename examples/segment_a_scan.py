"""Segment a scan on its own grid: `python examples/segment_a_scan.py SCAN MODEL MASK.nii.gz OVERLAY.png`."""

import sys

import numpy as np

import ctssl
from ctssl.pictures import overlay


def main(scan: str, model: str, mask: str, picture: str) -> None:
    volume = ctssl.read(scan)
    segmenter = ctssl.load_segmenter(model)
    tumour = segmenter.segment(volume, progress=True)
    tumour.save(mask)
    window = segmenter.spec.preprocess.window_hu
    overlay(volume, tumour, picture, window_hu=window, title=volume.name, names=segmenter.labels)
    voxel_ml = abs(np.linalg.det(volume.affine[:3, :3])) / 1000
    millilitres = (tumour.array == 1).sum() * voxel_ml
    print(f"{segmenter.labels[1]}: {millilitres:.1f} ml; {mask}, {picture}")


if __name__ == "__main__":
    main(*sys.argv[1:])
