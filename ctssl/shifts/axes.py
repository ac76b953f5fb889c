"""Reorient a scan to RAS+ axis order and direction, so that the axial plane is known, and back."""

from __future__ import annotations

import numpy as np

from ctssl.volume.volume import Volume


def reorient(volume: Volume) -> Volume:
    """Return the scan with its array axes along x, y, z as closely as its affine allows; float32, a copy."""
    order, flips = _turn(volume.affine)
    array = np.flip(volume.array.transpose(order), flips).astype(np.float32, order="C")
    steps = np.zeros((4, 4))
    steps[3, 3] = 1.0
    for new, old in enumerate(order):
        steps[old, new] = -1.0 if new in flips else 1.0
        steps[old, 3] = volume.shape[old] - 1 if new in flips else 0.0
    return Volume(array, volume.affine @ steps, volume.name)


def restore_axes(array: np.ndarray, volume: Volume) -> np.ndarray:
    """Return an array on the reoriented grid in the scan's own axis order and direction."""
    order, flips = _turn(volume.affine)
    return np.ascontiguousarray(np.flip(array, flips).transpose(np.argsort(order)))


def _turn(affine: np.ndarray) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the array axis that runs along each of x, y, z, and which of x, y, z must then be flipped."""
    from scipy.optimize import linear_sum_assignment

    directions = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    rows, columns = linear_sum_assignment(-np.abs(directions))
    order = columns[np.argsort(rows)]
    return tuple(order.tolist()), tuple(i for i in range(3) if directions[i, order[i]] < 0)
