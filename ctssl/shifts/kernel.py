"""Reconstruction kernel: sharper or smoother, in the axial plane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ctssl.volume.volume import AIR_HU, Volume

REFERENCE = 0.33  # cycles/mm at which the table gives the ratio
EXPONENT = 2.0
GAIN = 10.0  # the ratio never reaches it
SEVERITIES = {1: 0.3, 2: 0.6, 3: 1.0, 4: 2.0, 5: 4.0}
"""How far the MTF ratio lies above 1 at 0.33 cycles/mm (before the bound): 1.3, 1.6, 2, 3, 5. Chosen to reach
over two real pairs of reconstructions, which lie at 1.9 (Siemens B40f to B70f, like severity 3) and 4.8
(Philips B to L, like severity 5). The exponent carries over from one pair to the other, in noise and edges
(`training/experiments/shifts_proof.py`); the strength has to be chosen, or told by scans of both kernels, of
which no two need be a pair."""


def ratio(
    frequency: np.ndarray, strength: float, *, exponent: float = EXPONENT, gain: float = GAIN
) -> np.ndarray:
    """MTF of the sharper kernel over that of the smoother one, at `frequency` in cycles/mm.

    `1 + A / sqrt(1 + (A / (gain - 1))^2)` with `A = strength (f / 0.33)^exponent`: a power of the frequency,
    as in FBPAug, that levels off below `gain`, so that noise beyond the resolution of the scan is not
    amplified without end.
    """
    rise = strength * (np.asarray(frequency, float) / REFERENCE) ** exponent
    return 1.0 + rise / np.sqrt(1.0 + (rise / (gain - 1.0)) ** 2)


def sharpen(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A sharper kernel: every axial slice times `ratio`, in frequency space. No chance in it.

    Both reconstructions of one acquisition come from the same projections, so by the projection-slice theorem
    they differ by a radial filter: edges and the noise that is there alike, the noise power by its square.
    After FBPAug (arXiv 2107.08543) and F-Consistency (arXiv 2203.14616), which filter projections; in the
    image it is the same and takes no projections. Values below -1024 HU (outside the field of view) stay,
    none new arise. Coarse pixels hold little of what kernels differ in: at 1 mm the ratio is reached up to
    0.5 cycles/mm, at 5 mm only up to 0.1.
    """
    return filtered(volume, lambda f: ratio(f, SEVERITIES[severity]))


def smooth(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """A smoother kernel: the inverse of `sharpen` of the same severity. No chance in it."""
    return filtered(volume, lambda f: 1.0 / ratio(f, SEVERITIES[severity]))


def filtered(volume: Volume, response: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Axial slices through a radial filter, `response(frequency in cycles/mm)`; edges of the slice are
    continued."""
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
        plane = np.maximum(volume.array[:, :, z], AIR_HU)
        spectrum: Any = fft.rfft2(np.pad(plane, around, mode="edge"))
        found: Any = fft.irfft2(spectrum * gains, fast)
        result[:, :, z] = np.maximum(found[inside], AIR_HU)
    return np.where(volume.array < AIR_HU, volume.array, result)
