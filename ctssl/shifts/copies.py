"""Shifted copies of training scans: augmentation computed before training."""

from __future__ import annotations

import numpy as np

from ctssl.shifts import SHIFTS, shift
from ctssl.volume.volume import Volume

TRAINED = tuple(name for name in SHIFTS if name != "truncation")
"""Shifts for training copies; not truncation, which can remove the labelled region."""


def shifted_copies(scan: Volume, count: int, *, seed: int = 0) -> list[Volume]:
    """Return `count` copies of a scan, each with a random shift and severity.

    The copies are made before training because a shift takes seconds.

    Args:
        scan: the scan in HU.
        count: number of copies, 0 or more.
        seed: seed of shifts, severities and noise.
    """
    if count < 0:
        raise ValueError(f"invalid count={count} (must be 0 or more)")
    rng, copies = np.random.default_rng([seed, 7]), []
    for _ in range(count):
        name = TRAINED[int(rng.integers(len(TRAINED)))]
        copies.append(shift(scan, name, severity=int(rng.integers(1, 6)), seed=int(rng.integers(2**31))))
    return copies
