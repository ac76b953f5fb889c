"""Compare a mask with the truth. Masks are `(X, Y, Z)` arrays on the same grid, distances are in mm.

Two empty masks agree perfectly (DSC and NSD 1, HD95 0). If only one is empty, nothing agrees (DSC and NSD 0,
HD95 NaN, because a distance to an empty set is undefined: count such cases, do not average over them).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

SLAB = 1 << 21  # voxels of a mask whose surface is looked for at a time


def dsc(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice similarity coefficient, 2|A and B| / (|A| + |B|), from 0 to 1.

    >>> dsc(np.array([[[1, 1, 0, 0]]]), np.array([[[0, 1, 1, 0]]]))
    0.5
    """
    predicted, truth = _masks(predicted, truth)
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((predicted & truth).sum()) / total


def hd95(predicted: np.ndarray, truth: np.ndarray, *, spacing_mm: tuple[float, ...] | np.ndarray) -> float:
    """Return the 95th percentile of the Hausdorff distance in mm, the larger of both directions, between
    surface voxels (as MONAI defines it).

    DeepMind's `surface-distance` takes the percentile over the area of the surfaces instead, which gives
    other numbers.

    Args:
        predicted: mask `(X, Y, Z)`.
        truth: mask `(X, Y, Z)`.
        spacing_mm: voxel size along each axis in mm, or the 3x3 matrix from voxels to mm, of sheared grids too.

    >>> one, two = np.zeros((2, 8, 8, 8), bool)
    >>> one[2:4, 2:4, 2:4] = two[3:5, 2:4, 2:4] = True
    >>> hd95(one, two, spacing_mm=(2.0, 1.0, 1.0))
    2.0
    """
    predicted, truth = _masks(predicted, truth)
    if not predicted.any() or not truth.any():
        return 0.0 if predicted.any() == truth.any() else math.nan
    size = np.array(spacing_mm, float)
    to_mm = size.T if size.ndim == 2 else np.diag(size)
    one, two = (_surface_voxels(mask) @ to_mm for mask in (predicted, truth))
    return max(float(np.percentile(_distances(a, b), 95)) for a, b in ((one, two), (two, one)))


def nsd(
    predicted: np.ndarray, truth: np.ndarray, *, spacing_mm: tuple[float, ...], tolerance_mm: float = 2.0
) -> float:
    """Return the normalised surface Dice: the share of both surfaces, by area, within `tolerance_mm` of the
    other.

    Source: arXiv 1809.04430, as MONAI computes it with the spacing.

    Args:
        predicted: mask `(X, Y, Z)`.
        truth: mask `(X, Y, Z)`.
        spacing_mm: voxel size along each axis in mm.
        tolerance_mm: largest acceptable distance between the surfaces in mm.

    >>> nsd(np.ones((4, 4, 4)), np.ones((4, 4, 4)), spacing_mm=(1.0, 1.0, 1.0))
    1.0
    """
    predicted, truth = _masks(predicted, truth)
    if not predicted.any() or not truth.any():
        return float(predicted.any() == truth.any())
    areas, bits = _areas(spacing_mm)
    surfaces = [_surface_cells(mask, bits) for mask in (predicted, truth)]
    (one, first), (two, second) = ((cells * np.array(spacing_mm, float), areas[c]) for cells, c in surfaces)
    near = sum(
        float(area[_distances(a, b) <= tolerance_mm].sum())
        for a, b, area in ((one, two, first), (two, one, second))
    )
    return near / float(first.sum() + second.sum())


def lesions(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Count true lesions that the prediction touches, true lesions, and predicted lesions that touch none.

    A lesion is a set of voxels connected by faces, edges or corners.

    >>> lesions(np.array([[[1, 0, 1, 0, 0]]]), np.array([[[1, 0, 0, 0, 1]]]))
    (1, 2, 1)
    """
    predicted, truth = _masks(predicted, truth)
    true, count = components(truth)
    own, claimed = components(predicted)
    hit = len(np.unique(true[predicted & truth]))
    right = len(np.unique(own[predicted & truth]))
    return hit, count, claimed - right


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Return the number (1, 2, ...) of the piece that each voxel of a mask belongs to, 0 outside, and the count of pieces; voxels
    are connected by faces, edges or corners.

    >>> components(np.array([[[1, 0], [0, 1]], [[0, 0], [0, 0]]]))[1]
    1
    """
    from scipy import ndimage

    label: Any = ndimage.label
    return label(mask, np.ones((3, 3, 3)))


def _masks(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if predicted.shape != truth.shape:
        raise ValueError(
            f"masks of different shapes, {predicted.shape} and {truth.shape}; resample them to one grid first"
        )
    return predicted.astype(bool, copy=False), truth.astype(bool, copy=False)


def _distances(points: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the distance of each point to the nearest of the others, in mm."""
    from scipy.spatial import KDTree

    return KDTree(others, leafsize=32).query(points)[0].astype(np.float32)


def _parts(mask: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Cut a mask, with a border of background, into slabs that overlap by two planes: each slab, and the
    voxel that its first one is in the mask. So the memory follows the surface, and not the scan.
    """
    box = []
    for axis in range(3):
        found = np.flatnonzero(mask.any(tuple({0, 1, 2} - {axis})))
        box.append(slice(found[0], found[-1] + 1))
    inside = np.pad(mask[tuple(box)], 1)
    planes = max(1, SLAB // (inside.shape[1] * inside.shape[2]))
    for first in range(0, len(inside) - 2, planes):
        yield inside[first : first + planes + 2], np.array([part.start - 1 for part in box]) + (first, 0, 0)


def _surface_voxels(mask: np.ndarray) -> np.ndarray:
    """Return the voxels `(N, 3)` of a mask of which one of the six neighbours is not in it."""
    found = []
    for part, start in _parts(mask):
        middle = (slice(1, -1),) * 3
        inner = part[middle].copy()
        for axis, side in itertools.product(range(3), (slice(None, -2), slice(2, None))):
            inner &= part[(*middle[:axis], side, *middle[axis + 1 :])]
        found.append(np.argwhere(part[middle] & ~inner) + start + 1)
    return np.concatenate(found)


def _surface_cells(mask: np.ndarray, bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the cubes of 2x2x2 voxels that the surface of a mask crosses: the first voxel `(N, 3)` of each,
    and the sum `(N,)` of the `bits` `(2, 2, 2)` of those of its voxels that are in the mask.
    """
    cells, codes = [], []
    for number, (part, start) in enumerate(_parts(mask)):
        x, y, z = (n - 1 for n in part.shape)
        code = np.zeros((x, y, z), np.uint8)
        for (i, j, k), bit in np.ndenumerate(bits):
            code += part[i : i + x, j : j + y, k : k + z] * np.uint8(bit)
        code[: int(number > 0)] = 0  # of cells that the slab before has counted
        where = np.nonzero((code > 0) & (code < 255))
        cells.append(np.stack(where, 1) + start)
        codes.append(code[where])
    return np.concatenate(cells), np.concatenate(codes)


def _areas(spacing_mm: tuple[float, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return the area in mm2 of the surface in a cube, for each of the 256 codes of its voxels, and the bit
    `(2, 2, 2)` of each voxel in the code (MONAI's table, which is DeepMind's).
    """
    from monai.metrics.utils import get_code_to_measure_table

    areas, bits = get_code_to_measure_table(list(map(float, spacing_mm)))
    return areas.numpy(), bits.numpy().reshape(2, 2, 2)
