"""What the tests share. Data of real scans is read from CTSSL_DATA; tests that need it skip without."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from ctssl.encoders import ENCODERS
from ctssl.volume.volume import Volume

SMALL = {
    "swin": dict(width=12, depths=(2, 2), heads=(2, 4), window=4, patch=2, merge_last=False),
    "vit": dict(width=24, depth=3, heads=2, patch=8, grid=(4, 4, 4), maps=3),
}
"""A tiny configuration of each encoder: listed here, an encoder is tested by every contract test."""


@pytest.fixture(scope="session")
def data() -> Path:
    folder = os.environ.get("CTSSL_DATA")
    if not folder:
        pytest.skip("CTSSL_DATA is not set: this test reads real scans")
    return Path(folder)


@pytest.fixture(params=sorted(ENCODERS))
def encoder(request):
    torch.manual_seed(0)
    return ENCODERS[request.param](**SMALL[request.param]).eval()


@pytest.fixture(scope="session")
def ball() -> tuple[Volume, Volume]:
    """A scan of 72 x 60 x 48 mm in HU with a bright ball, and the ball's mask. No symmetry."""
    spacing = (2.0, 2.0, 3.0)
    x, y, z = np.meshgrid(
        *[np.arange(n) * s for n, s in zip((36, 30, 16), spacing, strict=True)], indexing="ij"
    )
    inside = (x - 40) ** 2 + (y - 24) ** 2 + (z - 20) ** 2 < 12**2
    body = (x - 36) ** 2 / 34**2 + (y - 30) ** 2 / 28**2 < 1
    hu = np.where(inside, 200.0, np.where(body, 20.0, -1000.0)).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    return Volume(hu, affine, "ball"), Volume(inside.astype(np.uint8), affine, "ball mask")


@pytest.fixture
def labelled(tmp_path, ball) -> Path:
    """Three labelled scans on disk, `images/` and `labels/`."""
    scan, mask = ball
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(3):
        noise = np.random.default_rng(i).normal(0, 5, scan.shape).astype(np.float32)
        Volume(scan.array + noise, scan.affine).save(tmp_path / "data" / "images" / f"case{i}.nii.gz")
        mask.save(tmp_path / "data" / "labels" / f"case{i}.nii.gz")
    return tmp_path / "data"
