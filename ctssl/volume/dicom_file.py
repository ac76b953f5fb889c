"""One DICOM file, which may come from anybody: opened with every fault in words. Needs pydicom: `pip install
'ctssl[dicom]'`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ctssl.volume.nifti import VOXELS

DEFLATED, DIRECTORY = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.3.10"
LARGEST = 1 << 31  # bytes of a file


def library() -> Any:
    """pydicom, or an `ImportError` that says how to install it."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("reading DICOM needs pydicom: pip install 'ctssl[dicom]'") from error
    return pydicom


def opened(file: Path, *, pixels: bool = True) -> Any:
    """The dataset of a file; None when it is no DICOM file at all. Raises `ValueError` when it is one, and
    damaged.

    A file whose content is deflated as a whole is refused: nobody knows its size before it is unpacked.
    """
    if not is_dicom(file):
        return None
    pydicom = library()
    if file.stat().st_size > LARGEST:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, more than an image of a series can have")
    try:
        meta = pydicom.filereader.read_file_meta_info(file)
        if str(meta.get("TransferSyntaxUID", "")).strip("\0 ") == DEFLATED:
            raise ValueError("its content is deflated as a whole; unpack it first, with dcmconv of dcmtk")
        return pydicom.dcmread(file, stop_before_pixels=not pixels)
    except PermissionError:
        raise
    except Exception as error:  # pydicom raises what its parsers raise
        raise ValueError(f"{file} is a damaged DICOM file ({_words(error)}); fetch it again") from error


def header_of(file: Path) -> Any:
    """The dataset of a file without its pixels; None when it is no DICOM file, and is not called one
    either."""
    if file.name.startswith("."):
        return None
    found = opened(file, pixels=False)
    if found is None and file.suffix.lower() in (".dcm", ".ima"):  # left aside, it would be a slice less
        raise ValueError(
            f"{file} is damaged: it does not begin as a DICOM file does; fetch it again, or remove it"
        )
    return found


def modality_of(header: Any, file: Path) -> str:
    """The modality of a file, "" for a directory; `ValueError` for a file so damaged that it could be
    anything.

    Left aside, it would be a slice less that nobody misses, if it is the first or the last.
    """
    found = text(header, "Modality")
    if text(header.file_meta, "MediaStorageSOPClassUID") == DIRECTORY:
        return ""
    if not re.fullmatch("[A-Z0-9_]{2,16}", found) or (found == "CT" and not _is_image(header)):
        raise ValueError(
            f"{file} is a damaged DICOM file (no Modality, no Rows or no SeriesInstanceUID); fetch it again, or "
            "remove it if it is no CT"
        )
    return found


def _is_image(header: Any) -> bool:
    return "Rows" in header and bool(text(header, "SeriesInstanceUID"))


def is_dicom(file: Path) -> bool:
    """Whether a file begins as DICOM files do: 128 bytes of anything, then DICM."""
    with open(file, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def text(dataset: Any, key: str, default: str = "") -> str:
    """An element as text; `default` where it is missing, empty or unreadable."""
    try:
        value = dataset.get(key)
    except Exception:  # of an element whose bytes are no value of its type
        return default
    return default if value is None else str(value)


def numbers(
    dataset: Any, key: str, count: int, file: Path, default: float | None = None
) -> tuple[float, ...]:
    """`count` finite numbers of an element; `ValueError` where it holds something else, or is missing without
    `default`."""
    try:
        if default is not None and dataset.get(key) is None:
            return (default,) * count
        value: Any = dataset.get(key)
        found = tuple(float(v) for v in ([value] if count == 1 else value))
    except Exception as error:
        raise ValueError(f"{file}: {key} is missing or holds no {count} numbers; fetch it again") from error
    if len(found) != count or not all(map(math.isfinite, found)):
        raise ValueError(f"{file}: {key} holds {found[:6]}, where {count} numbers are needed; fetch it again")
    return found


def one_image(dataset: Any, file: Path, *, images: int) -> tuple[int, int]:
    """Rows and columns of a file with one grey image, once all `images` of the series together are not too
    many voxels."""
    rows, columns = (int(numbers(dataset, key, 1, file)[0]) for key in ("Rows", "Columns"))
    samples = int(numbers(dataset, "SamplesPerPixel", 1, file, default=1)[0])
    if int(numbers(dataset, "NumberOfFrames", 1, file, default=1)[0]) != 1:
        raise ValueError(
            f"{file} holds several images (enhanced multi-frame DICOM): convert it with dcm2niix"
        )
    if samples != 1:
        raise ValueError(f"{file} holds a colour image ({samples} samples for each pixel), and no CT")
    if rows < 1 or columns < 1 or rows * columns * images > VOXELS:
        raise ValueError(
            f"{file} claims {rows} x {columns} pixels, {images} times; a scan has 1 to {VOXELS} voxels"
        )
    return rows, columns


def pixels_of(dataset: Any, file: Path) -> Any:
    """The pixels; `ValueError` in words whatever the decoders raise."""
    try:
        return dataset.pixel_array
    except Exception as error:
        raise ValueError(f"cannot decode {file} ({_words(error)}); fetch it again") from error


def _words(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
