"""Move scans and masks between grids: the working grid of a model, and resampling."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from ctssl.volume.volume import AIR_HU, Volume

if TYPE_CHECKING:
    from ctssl.zoo import Preprocess

AROUND = 0.76  # voxels: a working grid of whole voxels may end a quarter of one before the scan does


def prepare(volume: Volume, preprocess: Preprocess) -> Volume:
    """Resample a scan to the working grid of a model: RAS+ axes, isotropic spacing, HU window mapped to 0..1.

    Oblique scans keep their own axes; sheared ones (gantry tilt) are resampled to the nearest orthogonal
    axes. Raises `ValueError` for a scan of more or fewer channels than `preprocess` names.

    >>> from ctssl.phantom import phantom
    >>> from ctssl.zoo import Preprocess
    >>> prepare(phantom(8.0)[0], Preprocess(16.0, (-500.0, 500.0))).shape
    (20, 15, 15)
    """
    shape, affine = working_grid(volume, preprocess.spacing_mm)
    if len(volume.extra) != len(preprocess.channels):
        names = ", ".join(["CT", *(channel.name for channel in preprocess.channels)])
        raise ValueError(
            f"{volume.name} has {1 + len(volume.extra)} channels, the model takes {1 + len(preprocess.channels)} ({names}); "
            "give them all, in this order: ctssl.Channels(ct, ...), or --channel"
        )
    windows = [(*preprocess.window_hu, AIR_HU), *((c.low, c.high, c.low) for c in preprocess.channels)]
    first, *others = (
        _window(resample(array, volume.affine, shape, affine, fill=fill), low, high)
        for array, (low, high, fill) in zip((volume.array, *volume.extra), windows, strict=True)
    )
    return Volume(first, affine, volume.name, extra=tuple(others))


def _window(array: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((array - low) / (high - low), 0.0, 1.0, dtype=np.float32)


def is_sheared(affine: np.ndarray) -> bool:
    """Return whether the axes of a grid are not perpendicular, as with gantry tilt."""
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    return bool(np.abs(axes.T @ axes - np.eye(3)).max() > 1e-3)


def working_grid(volume: Volume, spacing_mm: float) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the shape and the 4x4 affine (voxels to RAS+ mm) of the isotropic grid that covers a scan.

    >>> shape, _ = working_grid(Volume(np.zeros((10, 20, 30)), np.diag([2.0, 1.0, 1.0, 1.0])), 2.0)
    >>> shape
    (10, 10, 15)
    """
    axes = volume.affine[:3, :3] / np.linalg.norm(volume.affine[:3, :3], axis=0)
    if is_sheared(volume.affine):  # nearest orthogonal axes (polar decomposition)
        u, _, vt = np.linalg.svd(axes)
        axes = u @ vt
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(-np.abs(axes))  # the array axis that runs along x, y, z
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
    edge: float = 0.5,
) -> np.ndarray:
    """Resample an array to another grid: linear, averaging where the new grid is coarser.

    Grids with parallel axes (in any order or direction) are resampled axis by axis, others by
    `scipy.ndimage`.

    Args:
        array: `(X, Y, Z)` values on the grid `affine`.
        affine: 4x4, voxels to RAS+ mm.
        to_shape: shape of the new grid.
        to_affine: 4x4 affine of the new grid.
        fill: value outside the old grid.
        edge: how far the old grid reaches beyond the centres of its outermost voxels, in voxels: half of one, to where they
            end; `AROUND` from a `working_grid` to the whole scan that it is centred on.

    Returns:
        float32 of shape `to_shape`.
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
            weights, outside = _axis_weights(where, array.shape[old], float(size[old, axis]), edge)
            result = np.moveaxis(np.tensordot(weights, result, (1, axis)), 0, axis)
            if outside.any():
                index: list = [slice(None)] * 3
                index[axis] = outside
                result[tuple(index)] = fill
        return np.ascontiguousarray(result, dtype=np.float32)
    return _resample_oblique(array, matrix, offset, to_shape, fill, edge)


def _axis_weights(where: np.ndarray, length: int, scale: float, edge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return `(new, old)` weights of a triangle as wide as the coarser grid, and which new voxels lie outside
    the old grid.
    """
    reach = max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - np.abs(where[:, None] - np.arange(length)) / reach)
    outside = _is_outside(where, length, edge)
    total = weights.sum(1, keepdims=True)
    nearest = np.clip(np.round(where), 0, length - 1).astype(int)
    empty = total[:, 0] == 0
    weights[empty, nearest[empty]] = total[empty] = 1.0
    return (weights / total).astype(np.float32), outside


def _is_outside(where: np.ndarray, length: int, edge: float) -> np.ndarray:
    return (where < -edge - 1e-6) | (where > length - 1 + edge + 1e-6)


def _resample_oblique(
    array: np.ndarray,
    matrix: np.ndarray,
    offset: np.ndarray,
    to_shape: tuple[int, int, int],
    fill: float,
    edge: float,
) -> np.ndarray:
    from scipy import ndimage

    array = array.astype(np.float32, copy=False)
    steps = np.linalg.norm(matrix, axis=1)  # old voxels per new voxel, along each old axis
    sigma = np.where(steps > 1.0, 0.4 * np.sqrt(np.maximum(steps**2 - 1.0, 0.0)), 0.0)
    if sigma.any():
        array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    move: Any = offset  # one number per axis, which scipy's type stub does not allow
    result: Any = ndimage.affine_transform(array, matrix, move, to_shape, np.float32, order=1, mode="nearest")
    places = np.ogrid[tuple(slice(n) for n in to_shape)]
    for row, start, length in zip(matrix, offset, array.shape, strict=True):
        where = sum(step * place for step, place in zip(row, places, strict=True)) + start
        result[_is_outside(where, length, edge)] = fill
    return result
