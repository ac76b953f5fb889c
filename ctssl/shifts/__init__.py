"""CT acquisition shifts: the same anatomy as another scanner, protocol or reconstruction would have shown it.

A shift is a function `(volume, severity, rng) -> array`. `volume` is a scan in HU with its axes in RAS+ order
and direction (so the axial plane is the first two axes, whatever the file had), `severity` a key of its
module's `SEVERITIES`, which defines 1 to 5 in physical units, `rng` the only source of randomness. It returns
float32 HU `(X, Y, Z)` and does not modify its input. Its docstring states the model and the source.

To add one: write `ctssl/shifts/<name>.py` and add a line to `SHIFTS`, at its place in the order of
acquisition. The command `ctssl shift` then has it too, with the first line of the docstring as help.

The other modules: `axes` (to RAS+ and back) and `beam` (projections) compute; `folder` (many scans, to files),
`copies` (augmentation) and `transform` (a MONAI transform) apply shifts; `stamps` marks what was shifted.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

import numpy as np

from ctssl.scan_checks import lint
from ctssl.shifts.axes import reorient, restore_axes
from ctssl.shifts.contrast import enhance
from ctssl.shifts.dose import lower_dose
from ctssl.shifts.kernel import sharpen, smooth
from ctssl.shifts.streaks import starve
from ctssl.shifts.thickness import thicken
from ctssl.shifts.truncation import truncate
from ctssl.volume.volume import Volume, read

REVISION = 3
"""Incremented whenever a shift of the same name, severity and seed gives other voxels; earlier results are
then measured again."""

SHIFTS: dict[str, Callable[[Volume, int, np.random.Generator], np.ndarray]] = {
    "contrast": enhance,
    "dose": lower_dose,
    "streaks": starve,
    "kernel_sharp": sharpen,
    "kernel_smooth": smooth,
    "thickness": thicken,
    "truncation": truncate,
}
"""Every shift by name, in physical order: patient, beam, reconstruction, field of view."""


def shift(
    volume: Volume | str | os.PathLike | tuple, name: str, *, severity: int = 3, seed: int = 0
) -> Volume:
    """Return a scan as it would look after an acquisition shift: same shape and affine, float32 HU.

    The result is bit-exact for a seed.

    Args:
        volume: anything that `ctssl.read` accepts.
        name: key of `ctssl.shifts.SHIFTS`.
        severity: 1 to 5.
        seed: seed of the noise, 0 or more.

    Raises:
        ValueError: unknown shift or severity, or the scan is not in HU.

    >>> from ctssl.phantom import phantom
    >>> shift(phantom(8.0)[0], "truncation", severity=2).shape
    (40, 30, 30)
    """
    check_shift(name, severity)
    if seed < 0:
        raise ValueError(f"invalid seed={seed} (must be a whole number from 0)")
    volume = read(volume)
    if volume.extra:
        raise ValueError(f"{volume.name} has {1 + len(volume.extra)} channels; a shift changes a CT alone")
    wrong = [
        finding.message for finding in lint(volume) if finding.level == "error" and finding.code != "constant"
    ]
    if wrong:
        raise ValueError(f"{volume.name}: {'; '.join(wrong)}")
    ready = reorient(volume)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # independent noise for each shift
    array = SHIFTS[name](ready, int(severity), rng).astype(np.float32, copy=False)
    return Volume(restore_axes(array, volume), volume.affine, volume.name, volume.header)


def shift_all(volume: Volume, severities: dict[str, int], *, seed: int = 0) -> Volume:
    """Apply several shifts, `{"dose": 2, "kernel_sharp": 3}`, in the order of `SHIFTS`."""
    for name, severity in severities.items():
        check_shift(name, severity)
    for name in SHIFTS:
        if name in severities:
            volume = shift(volume, name, severity=severities[name], seed=seed)
    return volume


def check_shift(name: str, severity: int) -> None:
    """Raise `ValueError` unless the shift and the severity exist."""
    if name not in SHIFTS:
        raise ValueError(f"unknown shift {name!r}; use {', '.join(SHIFTS)}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"unknown severity {severity!r} of {name}; use 1, 2, 3, 4 or 5")
