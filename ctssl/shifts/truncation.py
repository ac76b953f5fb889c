"""Field-of-view truncation: a reconstructed circle smaller than the body."""

from __future__ import annotations

import numpy as np

from ctssl.volume.volume import AIR_HU, Volume

SEVERITIES = {1: 0.95, 2: 0.85, 3: 0.75, 4: 0.65, 5: 0.55}
"""Radius of the field of view relative to the body's."""
BODY_HU = -500.0


def truncate(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Set everything outside a circle around the middle of the body to air (-1024 HU). Deterministic.

    Model: the display field of view, as most scanners write it, the same in all slices; nothing changes
    inside, so the bright rim of truly truncated projections is not modelled. The body's radius is the 99th
    percentile of its voxels' distances from their centre. A label outside the circle can no longer be found:
    keep this in mind when scores drop.
    """
    inside = volume.array > BODY_HU
    x, y = (np.arange(n) * s for n, s in zip(volume.shape[:2], volume.spacing_mm[:2], strict=True))
    density = inside.sum(2)
    total = density.sum()
    if total == 0:
        return volume.array.copy()
    distance = np.hypot((x - (density.sum(1) @ x) / total)[:, None], (y - (density.sum(0) @ y) / total)[None])
    order = np.argsort(distance, axis=None, kind="stable")
    passed = np.searchsorted(np.cumsum(density.ravel()[order]), 0.99 * total)
    radius = SEVERITIES[severity] * distance.ravel()[order[min(passed, len(order) - 1)]]
    return np.where(distance[..., None] <= radius, volume.array, np.float32(AIR_HU)).astype(np.float32)
