"""CT volumes: reading, saving, and moving arrays between grids. Axes and units are stated here, once.

Arrays are `(X, Y, Z)`; an affine is 4x4 and takes voxel indices to RAS+ millimetres (x to the patient's right-to-left,
y back-to-front, z feet-to-head), as in nibabel. CT values are Hounsfield units (HU).
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctssl.files.atomic import write_whole

if TYPE_CHECKING:
    from ctssl.zoo import Preprocess

AIR_HU = -1024.0
NOT_FINITE = "NaN or infinite voxels; replace them (in a CT air is -1000 HU, in a mask 0) and try again"


@dataclass(frozen=True)
class Volume:
    """A CT scan (`array` float32 HU) or a mask on its grid (`array` uint8). `affine`: 4x4, voxel to RAS mm."""

    array: np.ndarray
    affine: np.ndarray
    name: str = "array"
    header: Any = field(default=None, repr=False, compare=False)
    """The NIfTI header that it was read with; what is saved keeps it, but for what the array and the affine say."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.array.shape  # type: ignore[return-value]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Distance in mm between neighbouring voxels along each array axis."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write `.nii` or `.nii.gz`, whole or not at all. An existing file is kept unless `overwrite`."""
        import nibabel

        path = Path(path)
        if not path.name.endswith((".nii", ".nii.gz")):
            raise ValueError(f"cannot save to {path}: the name must end in .nii or .nii.gz")
        if path.exists() and not overwrite:
            raise FileExistsError(
                f"{path} exists; choose another name, or overwrite it on purpose (overwrite=True)"
            )
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} to save {path.name} in; make it first")
        known = None if self.header is None else nibabel.Nifti1Header.from_header(self.header, check=False)
        array = self.array.astype(np.uint8) if self.array.dtype == bool else self.array
        image = nibabel.Nifti1Image(array, self.affine, known, dtype=array.dtype)
        codes = [1, 1] if known is None else [int(known[key]) for key in ("sform_code", "qform_code")]
        image.set_sform(self.affine, code=codes[0] or 1)
        image.set_qform(self.affine, code=codes[1] or 1, strip_shears=True)
        image.header.set_slope_inter(None, None)
        image.header["cal_min"] = image.header["cal_max"] = 0
        image.header.set_xyzt_units("mm")
        return write_whole(path, lambda part: nibabel.save(image, part))


def read(
    source: Volume | str | os.PathLike | tuple[np.ndarray, np.ndarray], *, series: str | None = None
) -> Volume:
    """A scan from a NIfTI file, a folder with one DICOM series, or `(array in HU, affine)`.

    `series` picks one SeriesInstanceUID of a DICOM folder that holds several. Raises `FileNotFoundError` when nothing
    is there, `ValueError` for what is not one 3D scan (4D, colour, missing slices, a broken affine).
    """
    if isinstance(source, Volume):
        if np.issubdtype(source.array.dtype, np.floating) and not np.isfinite(source.array).all():
            raise ValueError(f"{source.name} holds {NOT_FINITE}")
        return source
    if isinstance(source, np.ndarray):
        raise ValueError("an array alone has no spacing: give (array in HU, affine)")
    if isinstance(source, (tuple, list)):
        if len(source) != 2:
            raise ValueError(f"expected (array, affine), got {len(source)} things")
        return _volume(np.asarray(source[0]), np.asarray(source[1], dtype=float), "array")
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no scan at {path}")
    if path.is_dir() or path.suffix.lower() in (".dcm", ".ima"):
        from ctssl.dicom import read_series

        array, affine = read_series(path, series=series)
        return _volume(array, affine, path.name)
    return _read_nifti(path)


def _read_nifti(path: Path) -> Volume:
    from ctssl.nifti import read_nifti

    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"cannot read {path}: a scan is a .nii or .nii.gz file, or a folder with a DICOM series"
        )
    array, affine, header = read_nifti(path)
    return replace(_volume(array, affine, path.name), header=header)


def _volume(array: np.ndarray, affine: np.ndarray, name: str) -> Volume:
    """Check what was given, in words, and convert it."""
    if array.dtype.names:
        raise ValueError(f"{name} is a colour image (RGB); a CT has one number per voxel, in HU")
    if array.ndim > 3 and all(size == 1 for size in array.shape[3:]):
        array = array.reshape(array.shape[:3])
    if array.ndim != 3:
        what = f"{array.ndim}D, shape {array.shape}"
        raise ValueError(
            f"{name} is {what}: one 3D scan is needed; save one time point or channel as its own file"
        )
    if min(array.shape) < 2:
        raise ValueError(f"{name} has shape {array.shape}: a scan needs at least two voxels along each axis")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise ValueError(f"{name} holds {array.dtype}: numbers in HU are needed")
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"{name} has no usable affine: a finite 4x4 matrix from voxels to mm is needed")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not (lengths > 1e-6).all()
        or not (lengths < 1e6).all()
        or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6
    ):
        raise ValueError(
            f"{name} has a singular affine (an axis without length, or without end); its geometry has to be "
            "repaired"
        )
    if np.abs(affine[:3, 3]).max() > 1e9 or np.abs(affine[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise ValueError(
            f"{name} has no usable affine: it puts the scan nowhere; its geometry has to be repaired"
        )
    values = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds {NOT_FINITE}")
    return Volume(values, affine, name)


def prepare(volume: Volume, preprocess: Preprocess) -> Volume:
    """The scan on the grid a model works on: RAS+ axes, isotropic spacing, HU window mapped to 0..1 (float32).

    Oblique scans keep their own axes; sheared ones (gantry tilt) are resampled to the nearest right-angled axes.
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
    """`(new, old)` weights of a triangle as wide as the coarser grid; which new places lie outside the old grid."""
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
    return ndimage.affine_transform(
        array, matrix, offset, to_shape, np.float32, order=1, mode="constant", cval=fill
    )  # type: ignore[return-value]
