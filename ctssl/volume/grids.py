"""Moving scans and masks between grids: the working grid of a model, and resampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ctssl.zoo import Preprocess
from ctssl.volume.volume import AIR_HU, Volume


def prepare(volume: Volume, preprocess: Preprocess) -> Volume:
    """The scan on the grid a model works on: RAS+ axes, isotropic spacing, HU window mapped to 0..1
    (float32).

    Oblique scans keep their own axes; sheared ones (gantry tilt) are resampled to the nearest right-angled
    axes.
    """
    shape, affine = working_grid(volume, preprocess.spacing_mm)
    low, high = preprocess.window_hu
    array = resample(volume.array, volume.affine, shape, affine, fill=AIR_HU)
    return Volume(np.clip((array - low) / (high - low), 0.0, 1.0, dtype=np.float32), affine, volume.name)


def sheared(affine: np.ndarray) -> bool:
    """Whether the axes of a grid are at no right angles, as with gantry tilt."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)


def working_grid(volume: Volume, spacing_mm: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of the isotropic RAS+ grid that covers a scan."""
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if sheared(volume.affine):  # nearest orthogonal axes (polar decomposition)
        u, _, vt = np.linalg.svd(axes)
        axes = u @ vt
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-np.abs(axes))  # which array axis runs along x, y, z
    axes = axes[:, columns[np.argsort(rows)]]
    axes = axes * np.where(np.diag(axes) < 0, -1.0, 1.0)
    corners = np.stack(np.meshgrid(*[(-0.5, n - 0.5) for n in volume.shape], indexing="ij"), -1).reshape(
        -1, 3
    )
    inside = (corners @ volume.affine[:3, :3].T + volume.affine[:3, 3]) @ axes  # along the new axes, mm
    low, high = inside.min(0), inside.max(0)
    shape = np.maximum(np.round((high - low) / spacing_mm), 1).astype(int)
    start = (low + high) / 2 - (shape - 1) / 2 * spacing_mm  # centred on the scan
    affine = np.eye(4)
    affine[:3, :3] = axes * spacing_mm
    affine[:3, 3] = axes @ start
    return tuple(int(n) for n in shape), affine  # type: ignore[return-value]


def resample(
    array: np.ndarray,
    affine: np.ndarray,
    to_shape: tuple[int, int, int],
    to_affine: np.ndarray,
    *,
    fill: float = 0.0,
) -> np.ndarray:
    """`array` moved to another grid, float32: linear, averaging when the new grid is coarser; `fill` outside.

    Grids whose axes are parallel (in any order or direction) are resampled axis by axis, others by
    `scipy.ndimage`.
    """
    relation = np.linalg.inv(affine) @ to_affine  # new voxel -> old voxel
    matrix, offset = relation[:3, :3], relation[:3, 3]
    size = np.abs(matrix)
    old_axis = size.argmax(0)  # the old axis that each new axis runs along
    strays = size.sum(0) - size.max(0)
    extent = np.array(to_shape)
    if len(set(old_axis.tolist())) == 3 and (strays * extent).max() < 0.1:
        result = array.astype(np.float32, copy=False).transpose(old_axis)
        for axis in range(3):
            old = old_axis[axis]
            where = offset[old] + matrix[old, axis] * np.arange(to_shape[axis])
            weights, outside = _axis_weights(where, array.shape[old], float(size[old, axis]))
            result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
            if outside.any():
                index: list = [slice(None)] * 3
                index[axis] = outside
                result[tuple(index)] = fill
        return np.ascontiguousarray(result, dtype=np.float32)
    return _resample_oblique(array, matrix, offset, to_shape, fill)


def _axis_weights(where: np.ndarray, length: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """`(new, old)` weights of a triangle as wide as the coarser grid; which new places lie outside the old
    grid."""
    reach = max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - np.abs(where[:, None] - np.arange(length)) / reach)
    outside = (where < -0.5 - 1e-6) | (where > length - 0.5 + 1e-6)
    total = weights.sum(1, keepdims=True)
    nearest = np.clip(np.round(where), 0, length - 1).astype(int)
    empty = total[:, 0] == 0
    weights[empty, nearest[empty]] = total[empty] = 1.0
    return (weights / total).astype(np.float32), outside


def _resample_oblique(
    array: np.ndarray, matrix: np.ndarray, offset: np.ndarray, to_shape: tuple[int, int, int], fill: float
) -> np.ndarray:
    from scipy import ndimage

    array = array.astype(np.float32, copy=False)
    steps = np.abs(matrix).max(1)  # old voxels per new voxel, along each old axis
    sigma = np.where(steps > 1.0, 0.4 * np.sqrt(np.maximum(steps**2 - 1.0, 0.0)), 0.0)
    if sigma.any():
        array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    move: Any = offset  # one number for each axis, which its stub does not know
    found: Any = ndimage.affine_transform(
        array, matrix, move, to_shape, np.float32, order=1, mode="constant", cval=fill
    )
    return found
