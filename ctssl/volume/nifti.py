"""NIfTI files, which may come from anybody: the header is believed only as far as the file can keep its
promise.

Nothing is unpacked before the header's claim was compared with `VOXELS` and with the size of the file, and no
more is unpacked than the claim. Header extensions are skipped, not read.
"""

from __future__ import annotations

import gzip
import logging
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np

VOXELS = 1 << 30  # that a scan may have; whole bodies at 512 x 512 x 2000 have half as many
DEFLATE = 1032  # bytes that a byte of gzip can become, at most
EXTENSIONS = 64 << 20  # bytes between the header and the voxels
TRAILING = 1 << 20  # bytes behind the voxels, which some programs leave there
PLANES = 16  # planes scaled at a time
QUIET = logging.Logger("nifti", level=logging.CRITICAL + 1)  # what nibabel says of a header, in its own words


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray, Any]:
    """Voxels of a `.nii` or `.nii.gz` (float32 after slope and intercept, as nibabel gives them; others as
    they are), affine, header.

    Raises `ValueError` when the file is damaged, or claims more than it can hold or than `VOXELS`.
    """
    from nibabel.spatialimages import HeaderDataError

    size, packed = path.stat().st_size, path.name.lower().endswith(".gz")
    try:
        with gzip.open(path) if packed else open(path, "rb") as stream:
            header, start = _header(stream)
            shape, offset = _claim(header, size * DEFLATE if packed else size)
            raw = _voxels(stream, offset - start, header.get_data_dtype(), shape)
            if len(stream.read(TRAILING + 1)) > TRAILING:  # to the end, where gzip keeps its checksum
                raise ValueError(f"it goes on behind the {math.prod(shape)} voxels that its header names")
        return (
            _scaled(raw, *header.get_slope_inter()),
            np.asarray(header.get_best_affine(), dtype=float),
            header,
        )
    except MemoryError as error:
        raise ValueError(f"{path} takes more memory than there is; cut or resample the scan") from error
    except (OSError, EOFError, ValueError, OverflowError, HeaderDataError, zlib.error) as error:
        if isinstance(error, PermissionError):
            raise
        raise ValueError(f"{path} is damaged or not NIfTI ({error}); copy or convert it again") from error


def _header(stream: Any) -> tuple[Any, int]:
    """The header, by its own length (NIfTI-1 or 2, either byte order), and how much was read for it."""
    import nibabel

    start = stream.read(4)
    for kind, length in ((nibabel.Nifti1Header, 348), (nibabel.Nifti2Header, 540)):
        for order, endianness in (("little", "<"), ("big", ">")):
            if int.from_bytes(start, order) == length:  # type: ignore[arg-type]
                block = start + stream.read(length - 4)
                if len(block) < length:
                    raise ValueError(f"it ends after {len(block)} bytes, within its header")
                found = kind(block, endianness=endianness, check=False)
                codes = [int(found[key]) for key in ("sform_code", "qform_code")]
                if not all(
                    0 <= code <= 5 for code in codes
                ):  # nibabel would take it for none, and the scan lies elsewhere
                    raise ValueError(f"its geometry is of the kinds {codes}, which NIfTI does not have")
                if bytes(found["magic"])[:3] not in (b"n+1", b"n+2"):
                    raise ValueError("its header says that the voxels lie in another file, or is none")
                found.check_fix(logger=QUIET)
                return found, length
    raise ValueError("it does not begin as a NIfTI header does")


def _claim(header: Any, room: int) -> tuple[tuple[int, ...], int]:
    """Shape and place of the voxels, once the file can hold them (`room` bytes at most) and they are not too
    many."""
    shape, offset, step = (
        header.get_data_shape(),
        float(header["vox_offset"]),
        header.get_data_dtype().itemsize,
    )
    if not math.isfinite(offset) or not 0 <= offset <= EXTENSIONS:
        raise ValueError(f"its voxels would begin at byte {offset:g}")
    if not 1 <= int(header["dim"][0]) <= 7 or not shape or min(shape) < 1:
        raise ValueError(f"its shape is {shape}")
    text, count = " x ".join(map(str, shape)), math.prod(map(int, shape))
    if count > VOXELS:
        raise ValueError(f"it claims {text} voxels, more than the {VOXELS} that ctssl reads")
    if step < 1 or step > 16:  # single bits; or nothing that a scan is made of
        raise ValueError(f"it holds {header.get_data_dtype()}, which is no CT")
    if count * step + offset > room:
        raise ValueError(f"it claims {text} voxels, more than a file of its size can hold")
    return tuple(map(int, shape)), header.get_data_offset()


def _voxels(stream: Any, skip: int, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray:
    """Values as they are stored; memory is taken only for what the claim and the file's size allow."""
    if skip < 0 or len(stream.read(skip)) < skip:
        raise ValueError("it ends before its voxels")
    raw = np.empty(math.prod(shape) * dtype.itemsize, np.uint8)
    view, done = memoryview(raw.data), 0
    while done < len(raw):
        count = stream.readinto(view[done : done + (16 << 20)])
        if not count:
            raise ValueError(f"it ends after {done} of the {len(raw)} bytes of voxels that its header names")
        done += count
    return raw.view(dtype).reshape(shape, order="F")


def _scaled(raw: np.ndarray, slope: float | None, inter: float | None) -> np.ndarray:
    """Values times slope plus intercept (in float64, some planes at a time) as float32; what is no number
    stays as it is."""
    if not np.issubdtype(raw.dtype, np.floating) and not np.issubdtype(raw.dtype, np.integer):
        return raw
    values = np.empty(raw.shape, np.float32)
    with np.errstate(all="ignore"):  # what overflows becomes infinite, and is refused for that
        for first in range(0, raw.shape[-1], PLANES):
            part = (..., slice(first, first + PLANES))
            plain = (slope, inter) in ((None, None), (1.0, 0.0))
            values[part] = raw[part] if plain else raw[part] * np.float64(slope or 1) + np.float64(inter or 0)
    return values
