"""Contrast: iodine in vessels and, less, in soft tissue. Approximate."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctssl.volume.grids import resample, working_grid
from ctssl.volume.volume import AIR_HU, Volume

SEVERITIES = {1: 2.0, 2: 4.0, 3: 6.0, 4: 9.0, 5: 12.0}
"""Iodine in the vessels in mg/ml: 50, 100, 150, 225, 300 HU at 120 kVp."""
GAIN = {80: 40.0, 100: 31.0, 120: 25.0, 140: 21.0}  # HU for 1 mg/ml by kVp, rounded from phantom measurements
TISSUE = 0.12  # iodine in soft tissue relative to vessels
SIGMAS_MM = (1.5, 3.0, 7.0)
GRID_MM = 2.0
CALM_MM = 1.0  # smoothing, so that noise does not decide where iodine goes
FAINT = 8.0  # HU: curvature below which nothing is a vessel


def enhance(volume: Volume, severity: int, rng: np.random.Generator, *, kvp: int = 120) -> np.ndarray:
    """Add iodine contrast, approximately: brighter tubes of 20..150 HU and slowly varying soft tissue.

    Model: Frangi's vesselness (MICCAI 1998) at 1.5, 3 and 7 mm on a grid of 2 mm, times the iodine, plus a
    perfusion field (noise smoothed over 25 mm) of 12 % of it; HU by tube voltage `kvp` (80, 100, 120, 140).
    Approximate: no timing, no organs; vessels inside tissue of their own density are missed, other tubes are
    enhanced too. Bone, fat and air do not change.
    """
    from scipy import ndimage

    if kvp not in GAIN:
        raise ValueError(f"invalid kvp={kvp} (must be one of {sorted(GAIN)})")
    shape, affine = working_grid(volume, GRID_MM)
    coarse = resample(volume.array, volume.affine, shape, affine, fill=AIR_HU)
    soft = band(coarse, (0.0, 20.0), (150.0, 170.0))
    iodine = vesselness(coarse) * band(coarse, (10.0, 20.0), (150.0, 170.0))
    iodine = np.maximum(iodine, TISSUE * soft * perfusion(shape, rng))
    fine = resample(iodine, affine, volume.shape, volume.affine)
    clipped = np.clip(volume.array, -150.0, 300.0)  # limits the influence of lung and bone next to a vessel
    calm = ndimage.gaussian_filter(clipped, [CALM_MM / s for s in volume.spacing_mm], mode="nearest")
    free = band(calm, (-60.0, -10.0), (160.0, 220.0)) * band(volume.array, (-85.0, -60.0), (220.0, 300.0))
    return volume.array + np.float32(SEVERITIES[severity] * GAIN[kvp]) * fine * free


def band(hu: np.ndarray, low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
    """Return 1 between `low[1]` and `high[0]`, falling linearly to 0 at `low[0]` and `high[1]`.

    >>> band(np.array([0.0, 15.0, 50.0]), (10.0, 20.0), (100.0, 200.0)).tolist()
    [0.0, 0.5, 1.0]
    """
    return np.minimum(
        np.clip((hu - low[0]) / (low[1] - low[0]), 0, 1), np.clip((high[1] - hu) / (high[1] - high[0]), 0, 1)
    )


def perfusion(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Return a smooth random field around 1, from about 0.4 to 1.6."""
    from scipy import ndimage

    rough = rng.standard_normal([-(-n // 6) + 1 for n in shape], dtype=np.float32)  # a 12 mm grid suffices
    field = ndimage.gaussian_filter(rough, 25.0 / GRID_MM / 6, mode="nearest")
    field = ndimage.zoom(field, [n / m for n, m in zip(shape, field.shape, strict=True)], order=1)
    return np.clip(1 + 0.3 * (field - field.mean()) / max(float(field.std()), 1e-9), 0.2, 1.8).astype(
        np.float32
    )


def vesselness(hu: np.ndarray) -> np.ndarray:
    """Return 0..1, high in bright tubes: the largest response over the scales, on a grid of 2 mm.

    Bone counts as 150 HU.
    """
    clipped = np.clip(hu, -50.0, 150.0).astype(np.float32)
    asked = (hu > 10.0) & (hu < 170.0)
    best = np.zeros(hu.shape, np.float32)
    if not asked.any():
        return best
    for sigma in SIGMAS_MM:
        curved = hessian(clipped, sigma / GRID_MM)
        chosen = asked & (np.trace(curved, axis1=-2, axis2=-1) < -FAINT)  # bright and curved; saves time
        values = np.linalg.eigvalsh(curved[chosen])
        values = np.take_along_axis(values, np.argsort(np.abs(values), axis=-1), -1)  # by size
        small, middle, large = np.moveaxis(values, -1, 0)
        flat = np.abs(middle) / np.maximum(np.abs(large), 1e-6)  # 0 for sheets
        round_ = np.abs(small) / np.sqrt(np.maximum(np.abs(middle * large), 1e-6))  # 0 for tubes
        strong = (values**2).sum(-1)
        response = (1 - np.exp(-2 * flat**2)) * np.exp(-2 * round_**2) * (1 - np.exp(-strong / (2 * 25.0**2)))
        best[chosen] = np.maximum(best[chosen], np.where((middle < 0) & (large < 0), response, 0))
    return np.clip(2 * best, 0, 1)


def hessian(image: np.ndarray, sigma: float) -> np.ndarray:
    """Return `(x, y, z, 3, 3)` second derivatives at a scale, times its square."""
    from scipy import ndimage

    result = np.empty((*image.shape, 3, 3), np.float32)
    for i in range(3):
        for j in range(i, 3):
            order: Any = [int(axis == i) + int(axis == j) for axis in range(3)]
            derivative = ndimage.gaussian_filter(image, sigma, order=order, mode="nearest", truncate=3.0)
            result[..., i, j] = result[..., j, i] = sigma**2 * derivative
    return result
