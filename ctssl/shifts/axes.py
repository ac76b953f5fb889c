"""Which axis of a scan is axial: its axes ordered and turned to RAS+, and back."""

from __future__ import annotations

import numpy as np

from ctssl.volume.volume import Volume


def turned(volume: Volume) -> Volume:
    """The scan with its array axes along x, y, z as nearly as they can be, by its affine; float32, no copy of
    its own data."""
    order, flips = _turn(volume.affine)
    array = np.flip(volume.array.transpose(order), flips).astype(np.float32, order="C")
    steps = np.zeros((4, 4))
    steps[3, 3] = 1.0
    for new, old in enumerate(order):
        steps[old, new] = -1.0 if new in flips else 1.0
        steps[old, 3] = volume.shape[old] - 1 if new in flips else 0.0
    return Volume(array, volume.affine @ steps, volume.name)


def turned_back(array: np.ndarray, volume: Volume) -> np.ndarray:
    """An array on the turned grid, on the scan's own axes again."""
    order, flips = _turn(volume.affine)
    return np.ascontiguousarray(np.flip(array, flips).transpose(np.argsort(order)))


def _turn(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The array axis that runs along each of x, y, z, and which of x, y, z then have to be flipped."""
    from scipy.optimize import linear_sum_assignment

    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    rows, columns = linear_sum_assignment(-np.abs(directions))
    order = columns[np.argsort(rows)]
    return tuple(order.tolist()), tuple(i for i in range(3) if directions[i, order[i]] < 0)
