"""Photon starvation: streaks along rays that hardly any photons pass."""

from __future__ import annotations

import numpy as np

from ctssl.shifts.beam import add_noise
from ctssl.shifts.dose import log_noise
from ctssl.volume.volume import Volume

SEVERITIES = {1: 0.005, 2: 0.01, 3: 0.02, 4: 0.04, 5: 0.08}
"""Electronic noise over signal, for 1 mm of detector and a ray at the 99th percentile of attenuation:
signal-to-noise ratios of 200, 100, 50, 25, 12."""
STARVED = 99.0  # percentile of the attenuation of the reference ray
STEEPEST = 1.5  # largest line integral beyond the reference: scanners filter such rays (adaptive filtering)


def starve(volume: Volume, severity: int, rng: np.random.Generator) -> np.ndarray:
    """Add streaks between the densest parts: noise that grows with the attenuation, `exp(line integral)`.

    Model: where so few photons arrive that electronic noise dominates, the logarithm of a reading has the
    deviation `noise / signal`; this noise is reconstructed alone and added (Hsieh, Medical Physics 1998,
    25(11) 2139, describes the cause). The scale is relative to the scan's own most attenuated rays, so that a
    leg gets streaks as well as a shoulder: the severity grades the artefact, not the tube current.
    """

    def noise(sinogram: np.ndarray, bin_mm: float) -> np.ndarray:
        through = sinogram[sinogram > 0.1]
        reference = np.float32(np.percentile(through, STARVED)) if through.size else np.float32(0)
        for z in range(sinogram.shape[2]):
            steep = np.exp(np.minimum(sinogram[:, :, z] - reference, np.float32(STEEPEST)))
            sinogram[:, :, z] = log_noise(np.float32(SEVERITIES[severity] / np.sqrt(bin_mm)) * steep, rng)
        return sinogram

    return add_noise(volume, noise)
