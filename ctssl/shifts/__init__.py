"""CT acquisition shifts: the same anatomy as another scanner, protocol or reconstruction would have given it.

A shift is a function `(volume, severity, rng) -> array`. `volume` is a scan in HU whose axes are ordered and
turned to RAS+ (so the axial plane is the first two axes, whatever the file had), `severity` a key of its
module's `SEVERITIES`, which says in physical units what 1 to 5 mean, `rng` the only source of chance. It
returns float32 HU `(X, Y, Z)` and leaves what it was given alone. Its docstring states the model and where it
comes from.

To add one: write `ctssl/shifts/<name>.py` and add a line to `SHIFTS`, at its place in the order in which a
scan is made. The command `ctssl shift` then has it too, with the first line of the docstring as help.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable

import numpy as np

from ctssl.lint import lint
from ctssl.shifts.axes import turned, turned_back
from ctssl.shifts.contrast import enhance
from ctssl.shifts.dose import lower_dose
from ctssl.shifts.kernel import sharpen, smooth
from ctssl.shifts.streaks import starve
from ctssl.shifts.thickness import thicken
from ctssl.shifts.truncation import truncate
from ctssl.volume.volume import Volume, read

REVISION = 3
"""Raised whenever a shift of the same name, severity and seed gives other voxels: what was measured before is
measured again."""

SHIFTS: dict[str, Callable[[Volume, int, np.random.Generator], np.ndarray]] = {
    "contrast": enhance,
    "dose": lower_dose,
    "streaks": starve,
    "kernel_sharp": sharpen,
    "kernel_smooth": smooth,
    "thickness": thicken,
    "truncation": truncate,
}
"""Every shift by name, in physical order: the patient, the beam, the reconstruction, the field of view."""


def shift(
    volume: Volume | str | os.PathLike | tuple, name: str, *, severity: int = 3, seed: int = 0
) -> Volume:
    """A scan (HU) as it would look after a shift of `SHIFTS`: same shape and affine, float32; bit-exact for a
    seed.

    `volume` is what `ctssl.read` takes. Raises `ValueError` for a shift or a severity that does not exist,
    saying which do, and for what cannot be HU.
    """
    check_shift(name, severity)
    if seed < 0:
        raise ValueError(f"seed={seed}: a whole number from 0")
    volume = read(volume)
    wrong = [
        finding.message for finding in lint(volume) if finding.level == "error" and finding.code != "constant"
    ]
    if wrong:
        raise ValueError(f"{volume.name}: {'; '.join(wrong)}")
    ready = turned(volume)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])  # each shift its own chance
    array = SHIFTS[name](ready, int(severity), rng).astype(np.float32, copy=False)
    return Volume(turned_back(array, volume), volume.affine, volume.name, volume.header)


def shift_all(volume: Volume, severities: dict[str, int], *, seed: int = 0) -> Volume:
    """Several shifts, `{"dose": 2, "kernel_sharp": 3}`, one after the other in the order of `SHIFTS`."""
    for name, severity in severities.items():
        check_shift(name, severity)
    for name in SHIFTS:
        if name in severities:
            volume = shift(volume, name, severity=severities[name], seed=seed)
    return volume


def check_shift(name: str, severity: int) -> None:
    """Raise `ValueError` unless there is such a shift and such a severity."""
    if name not in SHIFTS:
        raise ValueError(f"no shift is called {name!r}; there are {', '.join(SHIFTS)}")
    if severity not in (1, 2, 3, 4, 5):
        raise ValueError(f"{name} has no severity {severity!r}; there are 1, 2, 3, 4 and 5")
