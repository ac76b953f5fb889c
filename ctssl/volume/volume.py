"""A scan or a mask in memory: reading and saving. Axes and units are stated here, once.

Arrays are `(X, Y, Z)`; an affine is 4x4 and takes voxel indices to RAS+ millimetres (x to the patient's
right-to-left, y back-to-front, z feet-to-head), as in nibabel. CT values are Hounsfield units (HU).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ctssl.files.atomic import write_whole

if TYPE_CHECKING:
    pass

AIR_HU = -1024.0
NOT_FINITE = "NaN or infinite voxels; replace them (in a CT air is -1000 HU, in a mask 0) and try again"


@dataclass(frozen=True)
class Volume:
    """A CT scan (`array` float32 HU) or a mask on its grid (`array` uint8). `affine`: 4x4, voxel to RAS
    mm."""

    array: np.ndarray
    affine: np.ndarray
    name: str = "array"
    header: Any = field(default=None, repr=False, compare=False)
    """The NIfTI header that it was read with; what is saved keeps it, but for what the array and the affine
    say."""

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

    `series` picks one SeriesInstanceUID of a DICOM folder that holds several. Raises `FileNotFoundError` when
    nothing is there, `ValueError` for what is not one 3D scan (4D, colour, missing slices, a broken affine).
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
        from ctssl.volume.dicom import read_series

        array, affine = read_series(path, series=series)
        return _volume(array, affine, path.name)
    return _read_nifti(path)


def _read_nifti(path: Path) -> Volume:
    from ctssl.volume.nifti import read_nifti

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


def voxel_hash(scan: Volume, salt: str = "") -> str:
    """sha256 of the HU values, rounded, and the shape."""
    digest = hashlib.sha256(f"{salt}{scan.shape}".encode())
    digest.update(np.clip(np.round(scan.array), -32768, 32767).astype("<i2").tobytes())
    return digest.hexdigest()
