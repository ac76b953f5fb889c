"""Scans of simple bodies, whose answer under a shift is known."""

import numpy as np

from ctssl.volume.volume import Volume


def scan(array, spacing=(1.0, 1.0, 2.0)) -> Volume:
    return Volume(np.asarray(array, np.float32), np.diag([*spacing, 1.0]), "made")


def cylinder(radius_mm=100.0, *, slices=6, spacing=(2.0, 2.0, 5.0), hu=0.0) -> Volume:
    """A round body of water in air."""
    sizes = [int(2.4 * radius_mm / s) for s in spacing[:2]]
    x, y = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(sizes, spacing, strict=False))
    inside = np.hypot(x[:, None], y[None]) <= radius_mm
    return scan(np.repeat(np.where(inside, hu, -1000.0)[..., None], slices, 2), spacing)
