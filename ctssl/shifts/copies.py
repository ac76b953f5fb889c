"""Shifted copies of training scans: augmentation that is made before a training."""

from __future__ import annotations

import numpy as np

from ctssl.shifts import SHIFTS, shift
from ctssl.volume.volume import Volume

TRAINED = tuple(name for name in SHIFTS if name != "truncation")
"""What copies for a training are made with: a label outside the field of view teaches nothing."""


def shifted_copies(scan: Volume, count: int, *, seed: int = 0) -> list[Volume]:
    """`count` copies of a scan, each with a shift and a severity drawn by the seed: augmentation made before
    a training, since a shift takes seconds."""
    if count < 0:
        raise ValueError(f"{count} shifted copies: a number from 0")
    rng, copies = np.random.default_rng([seed, 7]), []
    for _ in range(count):
        name = TRAINED[int(rng.integers(len(TRAINED)))]
        copies.append(shift(scan, name, severity=int(rng.integers(1, 6)), seed=int(rng.integers(2**31))))
    return copies
