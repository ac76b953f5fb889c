"""Reconstruction kernel: sharper or smoother in the axial plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ctssl.volume.volume import AIR_HU, Volume

REFERENCE = 0.33  # cycles/mm at which the table gives the ratio
EXPONENT = 2.0
GAIN = 10.0  # upper bound of the ratio, never reached
SEVERITIES = {1: 0.3, 2: 0.6, 3: 1.0, 4: 2.0, 5: 4.0}
"""MTF ratio minus 1 at 0.33 cycles/mm (before the bound); ratios of 1.3, 1.6, 2, 3, 5. Chosen to cover two
real pairs of reconstructions, at 1.9 (Siemens B40f to B70f, like severity 3) and 4.8 (Philips B to L, like
severity 5). The exponent transfers from one pair to the other, in noise and edges
(`training/experiments/shifts_proof.py`); the strength has to be chosen, or estimated from scans of both
kernels, which need not be paired."""


def ratio(
    frequency: np.ndarray, strength: float, *, exponent: float = EXPONENT, gain: float = GAIN
) -> np.ndarray:
    """Return the MTF of the sharper kernel over that of the smoother one, at `frequency` in cycles/mm.

    `1 + A / sqrt(1 + (A / (gain - 1))^2)` with `A = strength (f / 0.33)^exponent`: a power of the frequency,
    as in FBPAug, that levels off below `gain`, so that noise beyond the resolution of the scan is not
    amplified without limit.

    >>> ratio(np.array([0.0, 0.33]), 1.0).round(2).tolist()
    [1.0, 1.99]
    """
    rise = strength * (np.asarray(frequency, float) / REFERENCE) ** exponent
    return 1.0 + rise / np.sqrt(1.0 + (rise / (gain - 1.0)) ** 2)


def sharpen(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Simulate a sharper kernel: multiply every axial slice by `ratio` in frequency space. Deterministic.

    Both reconstructions of one acquisition come from the same projections, so by the projection-slice theorem
    they differ by a radial filter, which acts on edges and on the existing noise alike, on the noise power by
    its square. After FBPAug (arXiv 2107.08543) and F-Consistency (arXiv 2203.14616), which filter
    projections; filtering the image is equivalent and needs no projections. Values below -1024 HU (outside
    the field of view) do not change, and no new ones arise. Coarse pixels contain little of what kernels
    differ in: at 1 mm the ratio is reached up to 0.5 cycles/mm, at 5 mm only up to 0.1.
    """
    return filter_slices(volume, lambda f: ratio(f, SEVERITIES[severity]))


def smooth(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Simulate a smoother kernel: the inverse of `sharpen` at the same severity. Deterministic."""
    return filter_slices(volume, lambda f: 1.0 / ratio(f, SEVERITIES[severity]))


def filter_slices(volume: Volume, response: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply a radial filter to every axial slice.

    Args:
        volume: the scan in HU, RAS+.
        response: gain as a function of the frequency in cycles/mm. Slices are extended beyond their edges.

    Returns:
        float32 HU `(X, Y, Z)`.
    """
    from scipy import fft

    sizes, spacing = volume.shape[:2], volume.spacing_mm[:2]
    pads = [min(32, n) for n in sizes]
    fast = [int(fft.next_fast_len(n + 2 * p, True) or n) for n, p in zip(sizes, pads, strict=True)]
    fx, fy = np.fft.fftfreq(fast[0], spacing[0]), np.fft.rfftfreq(fast[1], spacing[1])
    gains = response(np.hypot(fx[:, None], fy[None])).astype(np.float32)
    result = np.empty(volume.shape, np.float32)
    around = [(p, f - n - p) for n, p, f in zip(sizes, pads, fast, strict=True)]
    inside = tuple(slice(p, p + n) for n, p in zip(sizes, pads, strict=True))
    for z in range(volume.shape[2]):
        plane: Any = np.maximum(volume.array[:, :, z], AIR_HU)
        spectrum: Any = fft.rfft2(np.pad(plane, around, mode="edge"))
        plane = fft.irfft2(spectrum * gains, fast)
        result[:, :, z] = np.maximum(plane[inside], AIR_HU)
    return np.where(volume.array < AIR_HU, volume.array, result)
