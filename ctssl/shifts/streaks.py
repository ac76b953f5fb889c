"""Photon starvation: streaks along the rays that hardly any photon passes."""

from __future__ import annotations

import numpy as np

from ctssl.shifts.beam import add_noise
from ctssl.shifts.dose import log_noise
from ctssl.volume.volume import Volume

SEVERITIES = {1: 0.005, 2: 0.01, 3: 0.02, 4: 0.04, 5: 0.08}
"""Electronic noise over signal, in 1 mm of the detector and the ray of the 99th percentile of attenuation: a
signal-to-noise of 200, 100, 50, 25, 12."""
STARVED = 99.0
STEEPEST = (
    1.5  # beyond the reference, in line integrals: scanners filter such rays themselves (adaptive filtering)
)


def starve(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Streaks between the densest parts: noise whose deviation grows with the attenuation, `exp(line
    integral)`.

    Model: where so few photons arrive that the electronics' noise leads, the logarithm of a reading has the
    deviation `noise / signal`; reconstructed alone and added (Hsieh, Medical Physics 1998, 25(11) 2139, names
    the cause). The scale is relative to the scan's own most attenuated rays, so that a leg gets streaks as
    well as a shoulder: what is graded is the severity of the artefact, not the tube current.
    """

    def noise(sinogram: np.ndarray, bin_mm: float) -> np.ndarray:
        through = sinogram[sinogram > 0.1]
        reference = np.float32(np.percentile(through, STARVED)) if through.size else np.float32(0)
        for z in range(sinogram.shape[2]):
            steep = np.exp(np.minimum(sinogram[:, :, z] - reference, np.float32(STEEPEST)))
            sinogram[:, :, z] = log_noise(np.float32(SEVERITIES[severity] / np.sqrt(bin_mm)) * steep, rng)
        return sinogram

    return add_noise(volume, noise)
