"""Open one untrusted DICOM file and explain every fault. Needs pydicom: `pip install 'ctssl[dicom]'`."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from ctssl.volume.nifti import VOXELS

DEFLATED, DIRECTORY = "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.3.10"
LARGEST = 1 << 31  # maximum file size in bytes


def import_pydicom() -> Any:
    """Import pydicom. Raises an `ImportError` that says how to install it."""
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("reading DICOM needs pydicom: pip install 'ctssl[dicom]'") from error
    return pydicom


def open_dicom(file: Path, *, pixels: bool = True) -> Any:
    """Read the dataset of a file; returns None if it is not a DICOM file.

    Raises `ValueError` for a damaged DICOM file. A file in the deflated transfer syntax is refused, because
    its size is unknown until it is unpacked.
    """
    if not is_dicom(file):
        return None
    pydicom = import_pydicom()
    if file.stat().st_size > LARGEST:
        raise ValueError(
            f"{file} has {file.stat().st_size} bytes; one image of a series has at most {LARGEST}"
        )
    try:
        meta = pydicom.filereader.read_file_meta_info(file)
        if str(meta.get("TransferSyntaxUID", "")).strip("\0 ") == DEFLATED:
            raise ValueError("deflated transfer syntax; unpack it first with dcmconv of dcmtk")
        return pydicom.dcmread(file, stop_before_pixels=not pixels)
    except PermissionError:
        raise
    except Exception as error:  # pydicom lets every exception of its parsers through
        raise ValueError(
            f"{file} is a damaged DICOM file ({first_words(error)}); download it again"
        ) from error


def read_header(file: Path) -> Any:
    """Read the dataset of a file without its pixels.

    Returns None for hidden files and for files that are not DICOM. Raises `ValueError` for a damaged DICOM
    file, and for a file named .dcm or .ima that is not one.
    """
    if file.name.startswith("."):
        return None
    header = open_dicom(file, pixels=False)
    if header is None and file.suffix.lower() in (".dcm", ".ima"):  # skipped, it would be a missing slice
        raise ValueError(
            f"{file} is damaged: it does not start like a DICOM file; download it again, or remove it"
        )
    return header


def get_modality(header: Any, file: Path) -> str:
    """Return the modality of a file; "" for a DICOMDIR.

    Raises `ValueError` if the file is too damaged to determine it: a skipped first or last slice would go
    unnoticed.
    """
    modality = get_text(header, "Modality")
    if get_text(header.file_meta, "MediaStorageSOPClassUID") == DIRECTORY:
        return ""
    if not re.fullmatch("[A-Z0-9_]{2,16}", modality) or (modality == "CT" and not _is_image(header)):
        raise ValueError(
            f"{file} is a damaged DICOM file (no Modality, no Rows or no SeriesInstanceUID); "
            "download it again, or remove it if it is not CT"
        )
    return modality


def _is_image(header: Any) -> bool:
    return "Rows" in header and bool(get_text(header, "SeriesInstanceUID"))


def is_dicom(file: Path) -> bool:
    """Return whether a file starts like a DICOM file: 128 arbitrary bytes, then DICM."""
    with open(file, "rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def get_text(dataset: Any, key: str, default: str = "") -> str:
    """Return an element as text; `default` if it is missing, empty or unreadable."""
    try:
        value = dataset.get(key)
    except Exception:  # the bytes of the element do not fit its type
        return default
    return default if value is None else str(value)


def get_numbers(
    dataset: Any, key: str, count: int, file: Path, default: float | None = None
) -> tuple[float, ...]:
    """Return `count` finite numbers of an element.

    Raises `ValueError` if it holds anything else, or if it is missing and there is no `default`.
    """
    try:
        if default is not None and dataset.get(key) is None:
            return (default,) * count
        value: Any = dataset.get(key)
        values = tuple(float(v) for v in ([value] if count == 1 else value))
    except Exception as error:
        raise ValueError(
            f"{file}: {key} is missing or not numeric (needs {count} numbers); download it again"
        ) from error
    if len(values) != count or not all(map(math.isfinite, values)):
        raise ValueError(
            f"{file}: invalid {key} {values[:6]} (needs {count} finite numbers); download it again"
        )
    return values


def check_one_image(dataset: Any, file: Path, *, images: int) -> tuple[int, int]:
    """Return rows and columns of a file. Raises `ValueError` unless it holds one grey image of reasonable
    size.

    `images` is the number of images in the series: all of them together may have at most `VOXELS` voxels.
    """
    rows, columns = (int(get_numbers(dataset, key, 1, file)[0]) for key in ("Rows", "Columns"))
    samples = int(get_numbers(dataset, "SamplesPerPixel", 1, file, default=1)[0])
    if int(get_numbers(dataset, "NumberOfFrames", 1, file, default=1)[0]) != 1:
        raise ValueError(
            f"{file} holds several images (enhanced multi-frame DICOM); convert it with dcm2niix"
        )
    if samples != 1:
        raise ValueError(f"{file} holds a colour image ({samples} samples per pixel), not CT")
    if rows < 1 or columns < 1 or rows * columns * images > VOXELS:
        raise ValueError(
            f"{file} declares {rows} x {columns} pixels in {images} images; ctssl reads 1 to {VOXELS} voxels"
        )
    return rows, columns


def decode_pixels(dataset: Any, file: Path) -> Any:
    """Decode the pixels. Raises `ValueError` for whatever the decoders raise."""
    try:
        return dataset.pixel_array
    except Exception as error:
        raise ValueError(f"cannot decode {file} ({first_words(error)}); download it again") from error


def first_words(error: Exception) -> str:
    """Return the first line of an error's message, at most 200 characters; its type where there is none."""
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
