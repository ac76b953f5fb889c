"""DICOM folders. Needs pydicom: `pip install 'ctssl[dicom]'`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(path: Path, *, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The CT series of a folder (or of the folder of one file): HU `(X, Y, Z)` float32 and RAS affine.

    Raises `ValueError` when there are several series and none was chosen, when slices are missing or doubled, and
    when it is not CT.
    """
    folder = path if path.is_dir() else path.parent
    found = _headers(folder)
    if not found:
        raise ValueError(f"{folder} holds no DICOM images (and is no NIfTI file)")
    if series is None and len(found) > 1:
        lines = [f"  {uid}  {len(files)} images  {_describe(files[0][1])}" for uid, files in sorted(found.items())]
        raise ValueError(
            f"{folder} holds {len(found)} series; choose one (series=..., or --series):\n" + "\n".join(lines)
        )
    if series is not None and series not in found:
        raise ValueError(f"{folder} has no series {series}; it has {', '.join(sorted(found))}")
    return _stack([file for file, _ in found[series or next(iter(found))]], folder)


def _pydicom() -> Any:
    try:
        import pydicom
    except ImportError as error:
        raise ImportError("reading DICOM needs pydicom: pip install 'ctssl[dicom]'") from error
    return pydicom


def _headers(folder: Path) -> dict[str, list[tuple[Path, Any]]]:
    """Image files by SeriesInstanceUID. Files that are not DICOM images (DICOMDIR, RTSTRUCT, text) are left aside."""
    pydicom, found = _pydicom(), defaultdict(list)
    for file in sorted(folder.rglob("*")):
        if not file.is_file() or file.name == "DICOMDIR":
            continue
        try:
            header = pydicom.dcmread(file, stop_before_pixels=True)
        except (pydicom.errors.InvalidDicomError, OSError, EOFError):
            continue
        if "Rows" in header and "SeriesInstanceUID" in header and header.get("Modality") not in ("SEG", "RTSTRUCT"):
            found[str(header.SeriesInstanceUID)].append((file, header))
    return found


def _describe(header: Any) -> str:
    words = [header.get(key, "") for key in ("Modality", "SeriesDescription", "ConvolutionKernel")]
    return ", ".join(str(word) for word in words if word)


def _stack(files: list[Path], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    pydicom = _pydicom()
    slices = [pydicom.dcmread(file) for file in files]
    first = slices[0]
    if first.get("Modality", "CT") != "CT":
        raise ValueError(f"{folder} holds {first.Modality}, not CT")
    if len(slices) < 2:
        raise ValueError(f"{folder} holds one image of this series; a scan needs all of them (enhanced multi-frame "
                         "DICOM: convert it with dcm2niix)")  # fmt: skip
    for key in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        if any(key not in s for s in slices):
            raise ValueError(f"{folder}: {key} is missing, so the geometry is unknown")
    same = [(tuple(np.round(np.array(s.ImageOrientationPatient, float), 4)), tuple(map(float, s.PixelSpacing)),
             int(s.Rows), int(s.Columns)) for s in slices]  # fmt: skip
    if len(set(same)) > 1:
        raise ValueError(f"{folder}: slices of this series differ in size, spacing or orientation (a localiser among "
                         "them?); separate them")  # fmt: skip
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)  # along columns, along rows
    normal = np.cross(row, column)
    places = np.array([s.ImagePositionPatient for s in slices], float)
    order = np.argsort(places @ normal)
    slices, places = [slices[i] for i in order], places[order]
    gaps = np.diff(places @ normal)
    gap = float(np.median(gaps))
    if (gaps < 0.01).any():
        raise ValueError(f"{folder}: two images lie at the same place (several phases in one series?); separate them")
    if (np.abs(gaps - gap) > max(0.1 * gap, 0.02)).any():
        where = int(np.abs(gaps - gap).argmax())
        raise ValueError(f"{folder}: slices are missing; their distance is {gap:.3g} mm, but {gaps[where]:.3g} mm after "
                         f"slice {where + 1} of {len(slices)}. Fetch the whole series")  # fmt: skip
    images = []
    for s in slices:
        try:
            pixels = s.pixel_array
        except Exception as error:  # pydicom raises what its decoders raise
            raise ValueError(f"{folder}: cannot decode {Path(s.filename).name} ({error})") from error
        slope, intercept = float(s.get("RescaleSlope", 1)), float(s.get("RescaleIntercept", 0))
        images.append(pixels.astype(np.float32) * slope + intercept)  # (rows, columns)
    array = np.stack(images, -1).transpose(1, 0, 2)  # (columns, rows, slices) = (X, Y, Z)
    down, across = map(float, first.PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * across, column * down
    affine[:3, 2] = (places[-1] - places[0]) / (len(slices) - 1)  # keeps a gantry tilt
    affine[:3, 3] = places[0]
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return np.ascontiguousarray(array), affine
