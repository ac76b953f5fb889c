"""How well a mask agrees with the truth. Masks are `(X, Y, Z)` arrays on one grid, distances are in mm.

Empty masks: two of them agree entirely (DSC and NSD 1, HD95 0); with one of them nothing agrees (DSC and NSD
0, HD95 NaN, since a distance to nothing is no number: count such cases, do not average them away).
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np


def dsc(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Dice similarity coefficient, 2|A and B| / (|A| + |B|), from 0 to 1."""
    predicted, truth = _masks(predicted, truth)
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((predicted & truth).sum()) / total


def hd95(predicted: np.ndarray, truth: np.ndarray, *, spacing_mm: tuple[float, ...]) -> float:
    """95th percentile of the Hausdorff distance in mm: the larger of both directions, between surface voxels
    (MONAI's).

    DeepMind's `surface-distance` takes the percentile over the surfaces' area instead, which gives other
    numbers.
    """
    predicted, truth = _masks(predicted, truth)
    if not predicted.any() or not truth.any():
        return 0.0 if predicted.any() == truth.any() else math.nan
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about its own internals
        found = compute_hausdorff_distance(
            *_batched(predicted, truth),
            include_background=True,
            percentile=95,
            spacing=list(map(float, spacing_mm)),
        )
    return float(found)


def nsd(
    predicted: np.ndarray, truth: np.ndarray, *, spacing_mm: tuple[float, ...], tolerance_mm: float = 2.0
) -> float:
    """Normalised surface Dice: the share of both surfaces, by area, that lies within `tolerance_mm` of the
    other.

    arXiv 1809.04430, as MONAI computes it with the spacing.
    """
    predicted, truth = _masks(predicted, truth)
    if not predicted.any() or not truth.any():
        return float(predicted.any() == truth.any())
    from monai.metrics.surface_dice import compute_surface_dice

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        found = compute_surface_dice(
            *_batched(predicted, truth),
            class_thresholds=[tolerance_mm],
            include_background=True,
            spacing=list(map(float, spacing_mm)),
            use_subvoxels=True,
        )
    return float(found)


def lesions(predicted: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """(found, all, false): true lesions that the prediction touches, true lesions, and predicted ones that
    touch none.

    A lesion is a set of voxels connected by faces, edges or corners.
    """
    from scipy import ndimage

    predicted, truth = _masks(predicted, truth)
    cube: Any = np.ones((3, 3, 3))
    label: Any = ndimage.label
    true, count = label(truth, cube)
    own, claimed = label(predicted, cube)
    found = len(np.unique(true[predicted & truth]))
    right = len(np.unique(own[predicted & truth]))
    return found, count, claimed - right


def volume_ml(mask: np.ndarray, *, spacing_mm: tuple[float, ...]) -> float:
    """Volume of a mask in millilitres."""
    return float(np.count_nonzero(mask)) * math.prod(spacing_mm) / 1000.0


def _masks(predicted: np.ndarray, truth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if predicted.shape != truth.shape:
        raise ValueError(
            f"masks of different shapes, {predicted.shape} and {truth.shape}: bring them to one grid first"
        )
    return predicted.astype(bool), truth.astype(bool)


def _batched(predicted: np.ndarray, truth: np.ndarray) -> tuple[Any, Any]:
    """Both cropped to what is in either, with a margin, as `(1, 1, X, Y, Z)` tensors: distances do not
    change."""
    import torch

    where = np.nonzero(predicted | truth)
    box = tuple(slice(max(int(w.min()) - 2, 0), int(w.max()) + 3) for w in where)
    pads = [(2, 2)] * 3  # a mask that touches the border of the scan has a surface there too
    pair = (np.pad(mask[box], pads) for mask in (predicted, truth))
    one, two = (torch.from_numpy(mask)[None, None].float() for mask in pair)
    return one, two
