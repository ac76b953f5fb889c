"""Read NIfTI files from untrusted sources: the header is believed only where the file can back it up.

Nothing is unpacked before the declared size has been compared with `VOXELS` and with the size of the file,
and no more is unpacked than declared. Header extensions are skipped, not read.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

VOXELS = 1 << 30  # most voxels of a scan; a whole body of 512 x 512 x 2000 has half as many
DEFLATE = 1032  # largest compression ratio of gzip
EXTENSIONS = 64 << 20  # most bytes between the header and the voxels
TRAILING = 1 << 20  # most bytes after the voxels, which some programs leave there
PLANES = 16  # planes scaled at a time
QUIET = logging.Logger("nifti", level=logging.CRITICAL + 1)  # silences nibabel's own remarks about a header


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, Any]:
    """Read the voxels, the affine and the header of a `.nii` or `.nii.gz` file.

    Returns:
        Voxels as float32 after slope and intercept, as nibabel gives them (non-numeric types unchanged), the
        4x4 affine, and the nibabel header.

    Raises:
        ValueError: the file is damaged, or declares more voxels than it can hold or than `VOXELS`.
    """
    from nibabel.spatialimages import HeaderDataError

    size, packed = path.stat().st_size, path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else open(path, "rb") as stream:
            header, start = _read_header(stream)
            shape, offset = _check_claim(header, size * DEFLATE if packed else size)
            raw = _read_voxels(stream, offset - start, header.get_data_dtype(), shape)
            if len(stream.read(TRAILING + 1)) > TRAILING:  # to the end, where gzip keeps its checksum
                raise ValueError(f"it continues after the {math.prod(shape)} voxels that its header declares")
        return (
            _scale(raw, *header.get_slope_inter()),
            np.asarray(header.get_best_affine(), dtype=float),
            header,
        )
    except MemoryError as error:
        raise ValueError(f"not enough memory to read {path}; crop or resample the scan") from error
    except (OSError, EOFError, ValueError, OverflowError, HeaderDataError, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{path} is damaged or not NIfTI ({error}); copy or convert it again") from error


def read_header(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the shape and the affine that a file declares; nothing of its voxels is read.

    Raises `ValueError` as `read_nifti` does.
    """
    from nibabel.spatialimages import HeaderDataError

    size, packed = path.stat().st_size, path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else open(path, "rb") as stream:
            header = _read_header(stream)[0]
        shape = _check_claim(header, size * DEFLATE if packed else size)[0]
        return shape, np.asarray(header.get_best_affine(), dtype=float)
    except (OSError, EOFError, ValueError, OverflowError, HeaderDataError, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{path} is damaged or not NIfTI ({error}); copy or convert it again") from error


def forms_apart(header: Any) -> float:
    """Return how far apart in mm sform and qform place the corners of a grid at most: 0 unless a header has
    both, infinite for an invalid qform. What a qform cannot hold, the shear of an sform, does not count.
    """
    from nibabel.spatialimages import HeaderDataError

    if not (int(header["sform_code"]) and int(header["qform_code"])):
        return 0.0
    same = header.copy()
    try:
        same.set_qform(header.get_sform(), strip_shears=True)
        with np.errstate(all="ignore"):
            difference = same.get_qform() - header.get_qform()
    except (ValueError, HeaderDataError):
        return math.inf
    n = header.get_data_shape()
    corners = np.array([[x, y, z, 1] for x in (0, n[0]) for y in (0, n[1]) for z in (0, n[2])])
    apart = float(np.linalg.norm((corners @ difference.T)[:, :3], axis=1).max())
    return apart if math.isfinite(apart) else math.inf


def _read_header(stream: Any) -> tuple[Any, int]:
    """Read the header by its own length (NIfTI-1 or 2, either byte order); returns it and the bytes read."""
    import nibabel

    start = stream.read(4)
    for kind, length in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        for order, endianness in (("little", "<"), ("big", ">")):
            if int.from_bytes(start, order) == length:  # type: ignore[arg-type]
                block = start + stream.read(length - 4)
                if len(block) < length:
                    raise ValueError(f"it ends after {len(block)} bytes, within its header")
                header = kind(block, endianness=endianness, check=False)
                codes = [int(header[key]) for key in ("sform_code", "qform_code")]
                if not all(0 <= code <= 5 for code in codes):  # nibabel would ignore it and misplace the scan
                    raise ValueError(f"invalid sform/qform codes {codes}; NIfTI defines 0 to 5")
                if bytes(header["magic"])[:3] not in (b"n+1", b"n+2"):
                    raise ValueError(
                        "its magic string is invalid, or says that the voxels are in another file"
                    )
                header.check_fix(logger=QUIET)
                return header, length
    raise ValueError("it does not start with a NIfTI header")


def _check_claim(header: Any, room: int) -> tuple[tuple[int, ...], int]:
    """Return shape and byte offset of the voxels. Raises `ValueError` if they exceed `VOXELS` or `room`
    bytes.
    """
    shape, offset, step = (
        header.get_data_shape(),
        float(header["vox_offset"]),
        header.get_data_dtype().itemsize,
    )
    if not math.isfinite(offset) or not 0 <= offset <= EXTENSIONS:
        raise ValueError(f"invalid vox_offset {offset:g} (must be 0 to {EXTENSIONS})")
    if not 1 <= int(header["dim"][0]) <= 7 or not shape or min(shape) < 1:
        raise ValueError(f"invalid shape {shape}")
    text, count = " x ".join(map(str, shape)), math.prod(map(int, shape))
    if count > VOXELS:
        raise ValueError(f"it declares {text} voxels, more than the {VOXELS} that ctssl reads")
    if step < 1 or step > 16:  # single bits, or types that no scan has
        raise ValueError(f"it holds {header.get_data_dtype()}, which is not CT")
    if count * step + offset > room:
        raise ValueError(f"it declares {text} voxels, more than a file of its size can hold")
    return tuple(map(int, shape)), header.get_data_offset()


def _read_voxels(stream: Any, skip: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Read the stored values; memory is allocated only after the size was checked against the file."""
    if skip < 0 or len(stream.read(skip)) < skip:
        raise ValueError("it ends before its voxels")
    raw = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    view, done = memoryview(raw.data), 0
    while done < len(raw):
        count = stream.readinto(view[done : done + (16 << 20)])
        if not count:
            raise ValueError(
                f"it ends after {done} of the {len(raw)} bytes of voxels that its header declares"
            )
        done += count
    return raw.view(dtype).reshape(shape, order="F")


def _scale(raw: np.ndarray, slope: float | None, inter: float | None) -> np.ndarray:
    """Return values times slope plus intercept as float32, computed in float64 some planes at a time;
    non-numeric types stay as they are.
    """
    if not np.issubdtype(raw.dtype, np.floating) and not np.issubdtype(raw.dtype, np.integer):
        return raw
    values = np.empty(raw.shape, np.float32)
    with np.errstate(all="ignore"):  # overflow becomes infinite, which is refused later
        for first in range(0, raw.shape[-1], PLANES):
            part = (..., slice(first, first + PLANES))
            plain = (slope, inter) in ((None, None), (1.0, 0.0))
            values[part] = raw[part] if plain else raw[part] * np.float64(slope or 1) + np.float64(inter or 0)
    return values
