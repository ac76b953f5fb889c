"""Features of lesions: the mean of every map over each lesion of a mask, for radiomics."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from ctssl.datasets.case import fit_mask
from ctssl.inference.features import encode, map_affines, read_for
from ctssl.inference.windows import MEMORY_GB
from ctssl.metrics import components
from ctssl.volume.grids import resample
from ctssl.volume.volume import read

KINDS = ("lesion", "label")


@dataclass(frozen=True)
class Lesion:
    """A lesion and its features.

    Attributes:
        label: its value in the mask.
        number: counts the lesions of a label, from 1, the largest first; 0 for a label as a whole.
        volume_ml: volume in ml.
        centre_mm: centre of mass in RAS+ mm.
        vector: `(sum of the encoder's channels,)`, the mean of every map over the lesion, finest map first.
    """

    label: int
    number: int
    volume_ml: float
    centre_mm: tuple[float, float, float]
    vector: Tensor


def embed_lesions(
    encoder: Any,
    source: Any,
    mask: Any,
    *,
    by: str = "lesion",
    max_memory_gb: float = MEMORY_GB,
    progress: bool = False,
) -> list[Lesion]:
    """Compute the features of every lesion of a mask.

    A map's voxels count by the share of them that the lesion fills, so that small lesions have features too.

    Args:
        encoder: an encoder (`ctssl.load`).
        source: the scan, anything that `ctssl.read` takes.
        mask: labels 0 to 255 on the scan's grid, anything that `ctssl.read` takes.
        by: "lesion" for each piece (connected by faces, edges or corners) of each label, "label" for each label.
        max_memory_gb: memory limit of the process in GB.

    Returns:
        The lesions, by label and falling volume; empty for an empty mask.

    Raises:
        ValueError: scan and mask do not fit, or the scan needs more memory than allowed.
    """
    if by not in KINDS:
        raise ValueError(f"by={by!r}: use {' or '.join(KINDS)}")
    scan = read_for(encoder, source, max_memory_gb=max_memory_gb)
    labels = fit_mask(scan, read(mask), scan.name).array
    image, maps = encode(encoder, scan, progress=progress)
    affines = map_affines(image.affine, encoder.strides)
    widest = max(np.linalg.norm(affine[:3, :3], axis=0).max() for affine in affines)
    margin = [math.ceil(widest / one) + 1 for one in scan.spacing_mm]  # a cell's weight reaches so far
    found = []
    for label in (int(value) for value in np.unique(labels) if value):
        for number, piece in _pieces(labels == label, by):
            box = ndimage.find_objects(piece)[0]
            inside = np.pad(piece[box].astype(np.float32), [(one, one) for one in margin])
            grid = scan.affine.copy()
            grid[:3, 3] += grid[:3, :3] @ [part.start - one for part, one in zip(box, margin, strict=True)]
            vector = torch.cat([_mean(m, a, inside, grid) for m, a in zip(maps, affines, strict=True)])
            centre = grid[:3, :3] @ ndimage.center_of_mass(inside) + grid[:3, 3]
            millilitres = float(inside.sum()) * scan.voxel_ml
            x, y, z = (float(c) for c in centre)
            found.append(Lesion(label, number, millilitres, (x, y, z), vector))
    return found


def _pieces(mask: np.ndarray, by: str) -> list[tuple[int, np.ndarray]]:
    """Return the number and the mask (uint8) of each piece, the largest first; of a label as a whole the number 0."""
    if by == "label":
        return [(0, mask.astype(np.uint8))]
    pieces, count = components(mask)
    order = np.argsort(-np.bincount(pieces.ravel(), minlength=count + 1)[1:], kind="stable") + 1
    return [(place, (pieces == number).astype(np.uint8)) for place, number in enumerate(order, 1)]


def _mean(features: Tensor, affine: np.ndarray, inside: np.ndarray, grid: np.ndarray) -> Tensor:
    """Return the mean `(C,)` of a map `(C, x, y, z)`, weighted by how far a lesion fills its voxels."""
    x, y, z = features.shape[1:]
    weights = torch.from_numpy(resample(inside, grid, (x, y, z), affine))
    if not weights.sum() > 0:  # smaller than what resampling sees: the voxel in which its centre lies
        centre = grid[:3, :3] @ ndimage.center_of_mass(inside) + grid[:3, 3]
        place = np.round(np.linalg.inv(affine)[:3] @ [*centre, 1.0]).astype(int)
        weights[tuple(np.clip(place, 0, np.array(weights.shape) - 1))] = 1.0
    return (features * weights).sum((1, 2, 3)) / weights.sum()
