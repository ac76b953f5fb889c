"""Slice thickness and gap: average slabs along the patient's axis, then resample to the scan's own slices."""

from __future__ import annotations

import numpy as np

from ctssl.volume.volume import Volume

SEVERITIES = {1: (3.0, 0.0), 2: (4.0, 0.0), 3: (5.0, 0.0), 4: (7.5, 0.0), 5: (10.0, 2.0)}
"""Thickness and gap in mm."""


def thicken(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Simulate thicker slices: average each slab, then interpolate linearly between the centres of the slabs.

    Model: a rectangular slice sensitivity profile (IEC 61223-3-5 judges a scanner by its width), with slices
    of the scan as thick as they are apart. Averaging n slices of independent noise leaves 1/sqrt(n) of it.
    The position of the first slab is random. A scan whose slices are already that far apart does not change.
    """
    thickness, gap = SEVERITIES[severity]
    step = volume.spacing_mm[2]
    if thickness <= step * (1 + 1e-6):
        return volume.array.copy()
    weights = slabs(volume.shape[2], step, thickness, gap, start_mm=float(rng.uniform(-thickness - gap, 0)))
    return np.ascontiguousarray(volume.array @ weights.T)


def slabs(count: int, step_mm: float, thickness_mm: float, gap_mm: float, *, start_mm: float) -> np.ndarray:
    """Return `(count, count)` weights of new slices from old ones.

    Args:
        count: number of slices.
        step_mm: distance between slices.
        thickness_mm: thickness of a slab.
        gap_mm: gap between slabs.
        start_mm: start of the first slab, from the border of the first slice.
    """
    pitch, length = thickness_mm + gap_mm, count * step_mm
    begins = np.arange(start_mm, length, pitch)[:, None]
    borders = np.arange(count) * step_mm
    shared = np.minimum(begins + thickness_mm, borders + step_mm) - np.maximum(begins, borders)
    average = np.maximum(shared, 0.0)  # (slabs, count), mm of each slice within each slab
    kept = average.sum(1) > 0.25 * thickness_mm  # drops slabs that hardly overlap the scan
    if not kept.any():
        kept[average.sum(1).argmax()] = True
    average = average[kept] / average[kept].sum(1, keepdims=True)
    middles = begins[kept, 0] + thickness_mm / 2
    where = np.interp((np.arange(count) + 0.5) * step_mm, middles, np.arange(len(middles)))
    low = np.minimum(where.astype(int), max(len(middles) - 2, 0))
    part = (where - low)[:, None]
    return ((1 - part) * average[low] + part * average[np.minimum(low + 1, len(middles) - 1)]).astype(
        np.float32
    )
