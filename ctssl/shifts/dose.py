"""Dose: the noise of an acquisition with fewer photons."""

from __future__ import annotations

import numpy as np

from ctssl.shifts.beam import VIEWS, add_noise
from ctssl.volume.volume import AIR_HU, Volume

SEVERITIES = {1: 3 / 4, 2: 1 / 2, 3: 1 / 4, 4: 1 / 8, 5: 1 / 16}
"""Remaining share of the dose."""
FLUENCE = 4.6e8
"""Photons per mm^2 of detector in half a turn: 9 HU in 300 mm of water, pixels of 0.7 mm, slices of 5 mm."""
ELECTRONIC = 3.5e4  # variance of the electronic noise in photons^2, for the same area and time
FAINTEST = 0.05  # smallest reading relative to the expected signal, because its logarithm is taken


def lower_dose(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add the noise of a lower dose, simulated in the projections.

    Model: each detector reading loses `1 - dose` of its photons; this adds a variance of `(1 - dose) N + (1 -
    dose^2) E` (Poisson, in its Gaussian limit, and electronic), whose logarithm is filtered and
    backprojected, and the result is added to the scan. So the noise is correlated, streaky, stronger behind
    bone, in large bodies and in thin slices, and its variance is `(1 / dose - 1)` times that of the full dose
    (more where electronic noise contributes). After Yu (J Comput Assist Tomogr 2012) and Zabic (Medical
    Physics 2013, 40(3) 031102). The full dose is that of a reference protocol, `FLUENCE`, unless the scan's
    soft tissue is noisier than that: then it is the scan's own. Everything outside the volume attenuates
    nothing.
    """
    dose, thickness = SEVERITIES[severity], volume.spacing_mm[2]

    def noise(sinogram: np.ndarray, bin_mm: float) -> np.ndarray:
        area = bin_mm * thickness / VIEWS
        for z in range(sinogram.shape[2]):  # slice by slice, to save memory
            expected = np.float32(dose * FLUENCE * area) * np.exp(-sinogram[:, :, z])
            deviation = np.sqrt((1 - dose) * expected + np.float32((1 - dose**2) * ELECTRONIC * area))
            sinogram[:, :, z] = log_noise(deviation / expected, rng)
        return sinogram

    result = add_noise(volume, noise)
    own, soft = own_noise(volume)
    added = float(np.std((result - volume.array)[soft])) if own else 0.0
    wanted = own * np.sqrt(1 / dose - 1)
    if not added or wanted <= added:
        return result
    louder = volume.array + (result - volume.array) * np.float32(wanted / added)
    return np.where(volume.array < AIR_HU, volume.array, np.maximum(louder, np.float32(AIR_HU)))


def own_noise(volume: Volume) -> tuple[float, np.ndarray]:
    """Estimate the noise of a scan in soft tissue.

    Returns:
        The standard deviation in HU from differences between neighbouring slices (robust, divided by the
        square root of 2), 0 if there is too little soft tissue; and the soft-tissue mask. Slices that were
        interpolated from thicker ones seem quieter than they are.
    """
    from scipy import ndimage

    calm = ndimage.gaussian_filter(volume.array, (2.0, 2.0, 0.0), mode="nearest")
    soft = (calm > 0) & (calm < 100)
    pairs = soft[..., 1:] & soft[..., :-1]
    if pairs.sum() < 1000:
        return 0.0, soft
    steps = np.diff(volume.array, axis=2)[pairs]
    return float(1.4826 * np.median(np.abs(steps - np.median(steps))) / np.sqrt(2)), soft


def log_noise(deviation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the noise of the negative logarithm of readings, for Gaussian noise of this deviation relative
    to the signal.
    """
    noisy = 1 + deviation * rng.standard_normal(deviation.shape, dtype=np.float32)
    return -np.log(np.maximum(noisy, np.float32(FAINTEST)))
