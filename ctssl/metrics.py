"""Compare a mask with the truth. Masks are `(X, Y, Z)` arrays on the same grid, distances are in mm.

Two empty masks agree perfectly (DSC and NSD 1, HD95 0). If only one is empty, nothing agrees (DSC and NSD 0,
HD95 NaN, because a distance to an empty set is undefined: count such cases, do not average over them).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np


def dsc(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Return the Dice similarity coefficient, 2|A and B| / (|A| + |B|), from 0 to 1.

    >>> dsc(np.array([[[1, 1, 0, 0]]]), np.array([[[0, 1, 1, 0]]]))
    0.5
    """
    predicted, truth = _masks(predicted, truth)
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((predicted & truth).sum()) / total


def hd95(predicted: np.ndarray, truth: np.ndarray, *, spacing_mm: tuple[float, ...]) -> float:
    """Return the 95th percentile of the Hausdorff distance in mm, the larger of both directions, between
    surface voxels (as MONAI defines it).

    DeepMind's `surface-distance` takes the percentile over the area of the surfaces instead, which gives
    other numbers.

    Args:
        predicted: mask `(X, Y, Z)`.
        truth: mask `(X, Y, Z)`.
        spacing_mm: voxel size along each axis in mm.

    >>> one, two = np.zeros((2, 8, 8, 8), bool)
    >>> one[2:4, 2:4, 2:4] = two[3:5, 2:4, 2:4] = True
    >>> hd95(one, two, spacing_mm=(2.0, 1.0, 1.0))
    2.0
    """
    predicted, truth = _masks(predicted, truth)
    if not predicted.any() or not truth.any():
        return 0.0 if predicted.any() == truth.any() else math.nan
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # raised by MONAI about its own internals
        distance = compute_hausdorff_distance(
            *_batched(predicted, truth),
            include_background=True,
            percentile=95,
            spacing=list(map(float, spacing_mm)),
        )
    return float(distance)


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
    from monai.metrics.surface_dice import compute_surface_dice

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        share = compute_surface_dice(
            *_batched(predicted, truth),
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=list(map(float, spacing_mm)),
            use_subvoxels=True,
        )
    return float(share)


def lesions(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Count true lesions that the prediction touches, true lesions, and predicted lesions that touch none.

    A lesion is a set of voxels connected by faces, edges or corners.

    >>> lesions(np.array([[[1, 0, 1, 0, 0]]]), np.array([[[1, 0, 0, 0, 1]]]))
    (1, 2, 1)
    """
    from scipy import ndimage

    predicted, truth = _masks(predicted, truth)
    cube: Any = np.ones((3, 3, 3))
    label: Any = ndimage.label
    true, count = label(truth, cube)
    own, claimed = label(predicted, cube)
    hit = len(np.unique(true[predicted & truth]))
    right = len(np.unique(own[predicted & truth]))
    return hit, count, claimed - right


def volume_ml(mask: np.ndarray, *, spacing_mm: tuple[float, ...]) -> float:
    """Return the volume of a mask in millilitres.

    >>> volume_ml(np.ones((10, 10, 10)), spacing_mm=(1.0, 1.0, 2.0))
    2.0
    """
    return float(np.count_nonzero(mask)) * math.prod(spacing_mm) / 1000.0


def _masks(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if predicted.shape != truth.shape:
        raise ValueError(
            f"masks of different shapes, {predicted.shape} and {truth.shape}; resample them to one grid first"
        )
    return predicted.astype(bool), truth.astype(bool)


def _batched(predicted: np.ndarray, truth: np.ndarray) -> tuple[Any, Any]:
    """Crop both masks to their joint content plus a margin, as `(1, 1, X, Y, Z)` tensors; distances do not
    change.
    """
    import torch

    where = np.nonzero(predicted | truth)
    box = tuple(slice(max(int(w.min()) - 2, 0), int(w.max()) + 3) for w in where)
    pads = [(2, 2)] * 3  # a mask that touches the border of the scan has a surface there too
    pair = (np.pad(mask[box], pads) for mask in (predicted, truth))
    one, two = (torch.from_numpy(mask)[None, None].float() for mask in pair)
    return one, two
