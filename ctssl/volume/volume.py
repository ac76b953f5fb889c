"""The `Volume` record: a scan or a mask in memory, with reading and saving. Axes and units are defined here.

Arrays are `(X, Y, Z)`; an affine is 4x4 and takes voxel indices to RAS+ millimetres (x from the patient's
left to right, y from back to front, z from feet to head), as in nibabel. CT values are Hounsfield units (HU).
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.files.atomic import write_whole
from ctssl.files.walk import files_below
from ctssl.volume import foreign
from ctssl.volume.channels import Channels

AIR_HU = -1024.0
NIFTI1 = 32767  # most voxels along an axis of a NIfTI-1 file; NIfTI-2 holds more
NOT_FINITE = "NaN or infinite voxels; replace them (with -1000 HU, which is air, in a CT, 0 in a mask)"


@dataclass(frozen=True)
class Volume:
    """A CT scan (`array` float32 HU) or a mask (`array` uint8) with its 4x4 `affine` from voxels to RAS+ mm.

    >>> scan = Volume(np.zeros((4, 5, 6), np.float32), np.diag([2.0, 2.0, 3.0, 1.0]))
    >>> scan.shape, scan.spacing_mm
    ((4, 5, 6), (2.0, 2.0, 3.0))
    """

    array: np.ndarray
    affine: np.ndarray
    name: str = "array"
    header: Any = field(default=None, repr=False, compare=False)
    """The NIfTI header it was read with; `save` keeps the fields that array and affine do not determine."""
    series_uid: str = field(default="", repr=False)
    """SeriesInstanceUID of the DICOM series it was read from."""
    frame_uid: str = field(default="", repr=False)
    """FrameOfReferenceUID of that series: what was drawn in another one has other coordinates."""
    extra: tuple[np.ndarray, ...] = field(default=(), repr=False)
    """Further channels `(X, Y, Z)` float32 on the same grid; see `Channels`."""

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.array.shape  # type: ignore[return-value]

    @property
    def stack(self) -> np.ndarray:
        """Return all channels, `(C, X, Y, Z)`."""
        return np.stack([self.array, *self.extra]) if self.extra else self.array[None]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """Return the distance in mm between neighbouring voxels along each array axis."""
        return tuple(float(s) for s in np.linalg.norm(self.affine[:3, :3], axis=0))  # type: ignore[return-value]

    @property
    def voxel_ml(self) -> float:
        """Return the volume of a voxel in ml, also of a sheared grid (a tilted gantry)."""
        return abs(float(np.linalg.det(self.affine[:3, :3]))) / 1000

    def with_axes_of(self, other: Volume) -> Volume:
        """Return this scan or mask with its array axes in the order and directions of another one's, without resampling;
        unchanged where the axes of both are not the same lines.

        >>> left = Volume(np.arange(6.0).reshape(3, 2, 1), np.diag([-1.0, 1, 1, 1]))
        >>> right = left.with_axes_of(Volume(np.zeros((3, 2, 1)), np.eye(4)))
        >>> right.array[:, 0, 0].tolist(), right.affine[0].tolist()
        ([4.0, 2.0, 0.0], [1.0, 0.0, 0.0, -2.0])
        """
        own, wanted = (v.affine[:3, :3] / v.spacing_mm for v in (self, other))
        turn = np.linalg.solve(own, wanted)
        signs = np.round(turn)
        same = np.array_equal(signs, np.eye(3))
        if same or np.abs(turn - signs).max() > 0.01 or (np.abs(signs).sum(0) != 1).any():
            return self
        to_own = np.eye(4)  # from voxels of the result to voxels of this one
        to_own[:3, :3] = signs
        to_own[:3, 3] = [n - 1 if row.sum() < 0 else 0 for n, row in zip(self.shape, signs, strict=True)]
        order = np.abs(signs).argmax(0)
        flips = tuple(slice(None, None, int(signs[axis, k])) for k, axis in enumerate(order))
        arrays = [np.ascontiguousarray(a.transpose(order)[flips]) for a in (self.array, *self.extra)]
        affine = self.affine @ to_own
        return replace(self, array=arrays[0], affine=affine, header=None, extra=tuple(arrays[1:]))

    def on_grid(self, array: np.ndarray, name: str = "") -> Volume:
        """Return other values on the same grid, such as a mask `(X, Y, Z)`, without further channels. `name`: another one."""
        return replace(self, array=array, name=name or self.name, extra=())

    def like(self, source: Any) -> Any:
        """Return this scan or mask as an image of the same kind as `source`.

        Args:
            source: an image of nibabel, SimpleITK, TorchIO or a MONAI `MetaTensor`, such as the one that was
                segmented.

        Raises:
            TypeError: anything else was given.
            ValueError: the geometry is sheared, which SimpleITK cannot hold.
        """
        return foreign.like(self.array, self.affine, source)

    def save(self, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write a `.nii` or `.nii.gz` file atomically and return its path.

        Raises `FileExistsError` if it exists and `overwrite` is False, `FileNotFoundError` if its folder does
        not exist, `ValueError` for another file extension.
        """
        import nibabel

        path = Path(path)
        if not path.name.endswith((".nii", ".nii.gz")):
            raise ValueError(f"cannot save to {path}: the name must end in .nii or .nii.gz")
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; choose another name, or pass overwrite=True")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"no folder {path.parent} to save {path.name} in; create it first")
        kind = nibabel.Nifti2Image if max(self.shape) > NIFTI1 else nibabel.Nifti1Image
        known = self.header
        if known is not None:
            if max(known.get_data_shape()) > NIFTI1:
                known = known.copy()
                known.set_data_shape(self.shape)
            known = kind.header_class.from_header(known, check=False)
        array = self.array.astype(np.uint8) if self.array.dtype == bool else self.array
        image = kind(array, self.affine, known, dtype=array.dtype)
        codes = [1, 1] if known is None else [int(known[key]) for key in ("sform_code", "qform_code")]
        if known is not None and codes == [0, 0] and np.allclose(known.get_base_affine(), self.affine):
            image.set_sform(None)  # other programs then guess its place as they guess that of the scan
            image.set_qform(None)
        else:
            image.set_sform(self.affine, code=codes[0] or 1)
            image.set_qform(self.affine, code=codes[1] or 1, strip_shears=True)
        image.header.set_slope_inter(None, None)
        image.header["cal_min"] = image.header["cal_max"] = 0
        image.header.set_xyzt_units("mm")
        return write_whole(path, lambda part: nibabel.save(image, part))


def read(
    source: Volume | str | os.PathLike | tuple[np.ndarray, np.ndarray] | Any, *, series: str | None = None
) -> Volume:
    """Read a scan from a file, a DICOM folder, `(array, affine)`, or an image of another library.

    Args:
        source: a `.nii` or `.nii.gz` file; a `.nrrd`, `.mha` or `.mhd` file (with SimpleITK); a folder with one
            DICOM series; `(array in HU, 4x4 affine)`; an image of nibabel, SimpleITK, TorchIO (or a subject with
            one) or a MONAI `MetaTensor`; `Channels` of such images on one grid; or a `Volume`, which is returned
            unchanged.
        series: SeriesInstanceUID, when a DICOM folder holds several series.

    Raises:
        FileNotFoundError: the path does not exist.
        TypeError: something else was given.
        ValueError: not one 3D scan (4D, colour, missing slices, an invalid affine, NaN or infinite voxels).

    >>> read((np.zeros((4, 4, 4)), np.eye(4))).spacing_mm
    (1.0, 1.0, 1.0)
    """
    if isinstance(source, Volume):
        floats = (one for one in (source.array, *source.extra) if np.issubdtype(one.dtype, np.floating))
        if not all(np.isfinite(one).all() for one in floats):
            raise ValueError(f"{source.name} holds {NOT_FINITE}")
        return source
    if isinstance(source, np.ndarray):
        raise ValueError("an array alone has no spacing; give (array in HU, affine)")
    if isinstance(source, Channels):
        return _read_channels(source, series)
    if isinstance(source, (tuple, list)) and len(source) == 2 and getattr(source[1], "shape", ()) == (4, 4):
        array, affine = map(foreign.plain, source)
        return _to_volume(array, np.asarray(affine, dtype=float), "array")
    if foreign.kind_of(source):
        return _from_parts(foreign.parts_of(source))
    if several := scans_in(source):
        raise ValueError(f"a list of {len(several)} was given; read one scan at a time")
    if isinstance(source, (tuple, list)):
        if len(source) != 2:
            raise ValueError(f"expected (array, affine), got {len(source)} items")
        return _to_volume(foreign.plain(source[0]), np.asarray(source[1], dtype=float), "array")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(
            f"a {type(source).__name__} is no scan; give a path, (array in HU, affine), a Volume, or an image of nibabel, "
            "SimpleITK, MONAI (MetaTensor) or TorchIO"
        )
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no scan at {path}")
    if path.is_dir() or path.suffix.lower() in (".dcm", ".ima"):
        return _read_dicom(path, series)
    if path.suffix.lower() in foreign.ITK_FILES:
        return _from_parts(foreign.read_itk(path))
    return _read_nifti(path)


def files_of(path: Path) -> list[Path]:
    """Return the files that `read` may take a scan from: one file, those of a DICOM folder and its subfolders (of which a
    single DICOM file is a part), a header and what it names.
    """
    if path.is_dir():
        return files_below(path)
    if path.suffix.lower() in (".dcm", ".ima"):
        return files_below(path.parent)
    return [path, *foreign.files_named_in(path)]


def _read_dicom(path: Path, series: str | None) -> Volume:
    from ctssl.volume.dicom import read_series
    from ctssl.volume.dicom_file import get_modality, get_text, read_header

    alone = read_header(path) if path.is_file() else None
    if alone is not None and (kind := get_modality(alone, path)) in ("SEG", "RTSTRUCT"):
        raise ValueError(
            f"{path} is a {kind}, not a scan; give the folder of its series (and a mask as NIfTI)"
        )
    array, affine, header = read_series(path, series=series)
    return replace(
        _to_volume(array, affine, path.name),
        series_uid=get_text(header, "SeriesInstanceUID"),
        frame_uid=get_text(header, "FrameOfReferenceUID"),
    )


def _read_channels(source: Channels, series: str | None) -> Volume:
    """Read the images of a scan. Raises `ValueError` where they lie on different grids."""
    first = read(source.images[0], series=series)
    others = [_read_channel(image, number) for number, image in enumerate(source.images[1:], 2)]
    others = [other.with_axes_of(first) for other in others]
    for number, other in enumerate(others, 2):
        check_grid(first, other, f"channel {number} ({other.name})", "resample it to the grid of the scan")
        if other.array.min() == other.array.max():
            raise ValueError(
                f"channel {number} ({other.name}) holds {other.array.min():g} alone; give the right image"
            )
        if np.array_equal(first.array, other.array):
            raise ValueError(
                f"channel {number} ({other.name}) is the CT once more; give the image of that channel"
            )
    further = (array for other in others for array in (other.array, *other.extra))
    return replace(first, extra=(*first.extra, *(np.asarray(array, np.float32) for array in further)))


def _read_channel(image: Any, number: int) -> Volume:
    """Read a channel beside the CT."""
    try:
        return read(image)
    except ValueError as error:
        if isinstance(image, (str, os.PathLike)) and Path(image).is_dir():
            raise ValueError(
                f"channel {number}: {error}; of DICOM only CT is read: convert the channel to NIfTI (a PET in SUV), on the grid "
                "of the scan"
            ) from error
        raise


def check_grid(scan: Volume, other: Volume, what: str, cure: str) -> None:
    """Raise `ValueError` unless an image lies on the grid of a scan. `what` it is and its `cure`: for the message."""
    if scan.shape != other.shape:
        raise ValueError(f"{scan.name} has shape {scan.shape}, {what} has {other.shape}; {cure}")
    apart = corner_distance(scan, other)
    if apart > 0.5 * min(scan.spacing_mm):
        raise ValueError(
            f"{scan.name} and {what} lie up to {apart:.1f} mm apart (their affines differ); {cure}"
        )


def scans_in(source: Any) -> list[Any]:
    """Return the scans of a list or tuple of scans; none for `(array, affine)`, and for anything else."""
    if not isinstance(source, (tuple, list)):
        return []
    if len(source) == 2 and getattr(source[1], "shape", ()) == (4, 4):
        return []
    known = (str, os.PathLike, Volume, Channels, tuple)
    each = (isinstance(one, known) or foreign.kind_of(one) for one in source)
    return list(source) if all(each) else []


def _from_parts(parts: foreign.Parts) -> Volume:
    return replace(_to_volume(parts.array, parts.affine, parts.name), header=parts.header)


def read_grid(source: Any, *, series: str | None = None) -> Volume | None:
    """Return a scan of zeros that take no memory, with the shape and the affine of a NIfTI file or a DICOM series,
    before it is read; None for any other source.

    Raises `ValueError` as `read` does.
    """
    source = source.images[0] if isinstance(source, Channels) else source
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = Path(source)
    if path.is_dir() or (path.is_file() and path.suffix.lower() in (".dcm", ".ima")):
        from ctssl.volume.dicom import read_series_grid

        shape, affine = read_series_grid(path, series=series)
    elif path.name.lower().endswith((".nii", ".nii.gz")):
        from ctssl.volume.nifti import read_header

        if not path.is_file():
            raise FileNotFoundError(f"no scan at {path}")
        shape, affine = read_header(path)
    else:
        return None
    return Volume(_checked(np.broadcast_to(np.float32(0), shape), affine, path.name), affine, path.name)


def _read_nifti(path: Path) -> Volume:
    from ctssl.volume.nifti import read_nifti

    if not path.name.lower().endswith((".nii", ".nii.gz")):
        raise ValueError(
            f"cannot read {path}; give a .nii, .nii.gz, .nrrd, .mha or .mhd file, or a folder with a DICOM series"
        )
    array, affine, header = read_nifti(path)
    return replace(_to_volume(array, affine, path.name), header=header)


def _to_volume(array: np.ndarray, affine: np.ndarray, name: str) -> Volume:
    """Check and convert the input. Raises `ValueError` unless it is one 3D scan."""
    values = np.ascontiguousarray(_checked(array, affine, name), dtype=np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds {NOT_FINITE}")
    return Volume(values, affine, name)


def _checked(array: np.ndarray, affine: np.ndarray, name: str) -> np.ndarray:
    """Return the `(X, Y, Z)` numbers of a scan. Raises `ValueError` for another shape, type or affine."""
    if array.dtype.names:
        raise ValueError(f"{name} is a colour image (RGB); a CT has one number per voxel, in HU")
    if array.ndim > 3 and all(size == 1 for size in array.shape[3:]):
        array = array.reshape(array.shape[:3])
    if array.ndim != 3:
        what = f"{array.ndim}D, shape {array.shape}"
        raise ValueError(
            f"{name} is {what}; one 3D scan is needed: save one time point or channel as its own file"
        )
    if min(array.shape) < 2:
        raise ValueError(f"{name} has shape {array.shape}; a scan needs at least two voxels along each axis")
    if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool) or np.iscomplexobj(array):
        raise ValueError(f"{name} holds {array.dtype}; numbers in HU are needed")
    if affine.shape != (4, 4) or not np.isfinite(affine).all():
        raise ValueError(f"{name} has no usable affine; a finite 4x4 matrix from voxels to mm is needed")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)
    if (
        not (lengths > 1e-6).all()
        or not (lengths < 1e6).all()
        or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-6
    ):
        raise ValueError(
            f"{name} has a singular affine (an axis of zero or infinite length); repair its geometry first"
        )
    if np.abs(affine[:3, 3]).max() > 1e9 or np.abs(affine[3] - (0, 0, 0, 1)).max() > 1e-6:
        raise ValueError(
            f"{name} has no usable affine: its origin or last row is invalid; repair its geometry first"
        )
    return array


def voxel_hash(scan: Volume, salt: str = "") -> str:
    """Return the sha256 of the rounded HU values and the shape, independent of file format and header."""
    digest = hashlib.sha256(f"{salt}{scan.shape}".encode())
    digest.update(np.clip(np.round(scan.array), -32768, 32767).astype("<i2").tobytes())
    return digest.hexdigest()


def corner_distance(one: Volume, two: Volume) -> float:
    """Return how far apart in mm the corners of two grids of one shape are at most."""
    n = two.shape
    corners = np.array([[x, y, z, 1] for x in (0, n[0]) for y in (0, n[1]) for z in (0, n[2])])
    return float(np.linalg.norm((corners @ (one.affine - two.affine).T)[:, :3], axis=1).max())
