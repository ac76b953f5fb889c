"""Dose: the noise that fewer photons would have given."""

from __future__ import annotations

import numpy as np

from ctssl.shifts.beam import VIEWS, add_noise
from ctssl.volume import Volume

SEVERITIES = {1: 1 / 2, 2: 1 / 4, 3: 1 / 8, 4: 1 / 16, 5: 1 / 32}
"""Share of the dose that is left."""
FLUENCE = 3.5e8  # photons per mm^2 of detector in half a turn: 10 HU in 300 mm of water with slices of 5 mm
ELECTRONIC = 3.5e4  # variance of the electronic noise in photons^2, of the same area and time
FAINTEST = 0.05  # share of the expected signal below which no reading falls, since its logarithm is taken


def lower_dose(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Noise of a lower dose, made in projections and reconstructed alone, then added to the scan.

    Model: each reading of the detector loses `1 - dose` of its photons; what that adds is `(1 - dose) N + (1 - dose^2) E`
    in variance (Poisson, in its Gaussian limit, and electronic), its logarithm is filtered and backprojected. So the noise
    is correlated, streaky, stronger behind bone, in large bodies and in thin slices, and its variance is `(1 / dose - 1)`
    times that of the reference protocol (more where the electronics' noise joins). After Yu (J Comput Assist Tomogr 2012)
    and Zabic (Medical Physics 2013, 40(3) 031102). A scan's own protocol is not known: it is taken to be made with
    `FLUENCE`. What lies outside the volume attenuates nothing.
    """
    dose, thickness = SEVERITIES[severity], volume.spacing_mm[2]

    def noise(sinogram: np.ndarray, bin_mm: float) -> np.ndarray:
        area = bin_mm * thickness / VIEWS
        for z in range(sinogram.shape[2]):  # slice by slice, to save memory
            expected = np.float32(dose * FLUENCE * area) * np.exp(-sinogram[:, :, z])
            deviation = np.sqrt((1 - dose) * expected + np.float32((1 - dose**2) * ELECTRONIC * area))
            sinogram[:, :, z] = log_noise(deviation / expected, rng)
        return sinogram

    return add_noise(volume, noise)


def log_noise(deviation: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What Gaussian noise of this deviation, relative to the signal, does to the negative logarithm of readings."""
    noisy = 1 + deviation * rng.standard_normal(deviation.shape, dtype=np.float32)
    return -np.log(np.maximum(noisy, np.float32(FAINTEST)))
