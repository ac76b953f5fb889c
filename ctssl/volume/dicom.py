"""DICOM folders. Needs pydicom: `pip install 'ctssl[dicom]'`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ctssl.volume.dicom_file import header_of, modality_of, numbers, one_image, opened, pixels_of, text

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(path: Path, *, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The CT series of a folder (or of the folder of one file): HU `(X, Y, Z)` float32 and RAS affine.

    Raises `ValueError` when there are several series and none was chosen, when slices are missing or doubled,
    and when it is not CT.
    """
    folder = path if path.is_dir() else path.parent
    slices, places = ordered_slices(path, series=series)
    return _stack(slices, places, folder)


def ordered_slices(path: Path, *, series: str | None = None) -> tuple[list[Any], np.ndarray]:
    """The images of one series with their pixels, along its normal, and their places `(n, 3)` in DICOM's mm;
    see `read_series`."""
    folder = path if path.is_dir() else path.parent
    found = _headers(folder)
    if not found:
        raise ValueError(f"{folder} holds no DICOM images (and is no NIfTI file)")
    if series is None and len(found) > 1:
        lines = [
            f"  {uid}  {len(files)} images  {_describe(files[0][1])}" for uid, files in sorted(found.items())
        ]
        raise ValueError(
            f"{folder} holds {len(found)} series; choose one (series=..., or --series):\n" + "\n".join(lines)
        )
    if series is not None and series not in found:
        raise ValueError(f"{folder} has no series {series}; it has {', '.join(sorted(found))}")
    return _checked([file for file, _ in found[series or next(iter(found))]], folder)


def _headers(folder: Path) -> dict[str, list[tuple[Path, Any]]]:
    """Image files by SeriesInstanceUID. Files that are not DICOM images (DICOMDIR, RTSTRUCT, text) are left
    aside."""
    found = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        header = header_of(file) if file.is_file() and file.name != "DICOMDIR" else None
        if header is None or modality_of(header, file) in ("SEG", "RTSTRUCT", ""):
            continue
        if "Rows" in header and "SeriesInstanceUID" in header:
            found[text(header, "SeriesInstanceUID")].append((file, header))
    return found


def _describe(header: Any) -> str:
    words = [text(header, key) for key in ("Modality", "SeriesDescription", "ConvolutionKernel")]
    return ", ".join(word for word in words if word)


def _checked(files: list[Path], folder: Path) -> tuple[list[Any], np.ndarray]:
    """The slices of a series that is one regular grid, in order."""
    slices = [opened(file) for file in files]
    for s, file in zip(slices, files, strict=True):
        if text(s, "Modality", "CT") != "CT":
            raise ValueError(f"{folder} holds {text(s, 'Modality')}, not CT ({file.name})")
    if len(slices) < 2:
        raise ValueError(
            f"{folder} holds one image of this series; a scan needs all of them (enhanced multi-frame "
            "DICOM: convert it with dcm2niix)"
        )
    for key in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        if any(key not in s for s in slices):
            raise ValueError(f"{folder}: {key} is missing, so the geometry is unknown")
    same = {_plane(s, file, len(files)) for s, file in zip(slices, files, strict=True)}
    if len(same) > 1:
        raise ValueError(
            f"{folder}: slices of this series differ in size, spacing or orientation (a localiser among "
            "them?); separate them"
        )
    row, column = np.array(_orientation(slices[0], files[0])).reshape(2, 3)  # along columns, along rows
    normal = np.cross(row, column)
    places = np.array(
        [numbers(s, "ImagePositionPatient", 3, file) for s, file in zip(slices, files, strict=True)]
    )
    order = np.argsort(places @ normal)
    slices, places = [slices[i] for i in order], places[order]
    gaps = np.diff(places @ normal)
    gap = float(np.median(gaps))
    if (gaps < 0.01).any():
        raise ValueError(
            f"{folder}: two images lie at the same place (several phases in one series?); separate them"
        )
    if (np.abs(gaps - gap) > max(0.1 * gap, 0.02)).any():
        where = int(np.abs(gaps - gap).argmax())
        raise ValueError(
            f"{folder}: slices are missing; their distance is {gap:.3g} mm, but {gaps[where]:.3g} mm after "
            f"slice {where + 1} of {len(slices)}. Fetch the whole series"
        )
    return slices, places


def _plane(image: Any, file: Path, images: int) -> tuple[Any, ...]:
    """What all images of a series have in common: size, spacing and orientation."""
    spacing = numbers(image, "PixelSpacing", 2, file)
    if min(spacing) <= 0:
        raise ValueError(f"{file}: PixelSpacing is {spacing}; it must be positive")
    return (*one_image(image, file, images=images), spacing, tuple(np.round(_orientation(image, file), 4)))


def _orientation(image: Any, file: Path) -> tuple[float, ...]:
    """Directions of a row and of a column: six numbers, two unit vectors at a right angle."""
    found = numbers(image, "ImageOrientationPatient", 6, file)
    axes = np.array(found).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01:
        raise ValueError(
            f"{file}: ImageOrientationPatient is {found}, no two directions at a right angle; fetch it again"
        )
    return found


def _stack(slices: list[Any], places: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images = []
    row, column = np.array(_orientation(slices[0], folder)).reshape(2, 3)
    for s in slices:
        file = Path(s.filename)
        slope, intercept = (
            numbers(s, key, 1, file, default=value)[0]
            for key, value in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        images.append(pixels_of(s, file).astype(np.float32) * slope + intercept)  # (rows, columns)
    array = np.stack(images, -1).transpose(1, 0, 2)  # (columns, rows, slices) = (X, Y, Z)
    down, across = numbers(slices[0], "PixelSpacing", 2, folder)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * across, column * down
    affine[:3, 2] = (places[-1] - places[0]) / (len(slices) - 1)  # keeps a gantry tilt
    affine[:3, 3] = places[0]
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return np.ascontiguousarray(array), affine


Found = dict[str, list[tuple[Path, Any]]]  # modality -> (folder of the series, or file; header)


def find_series(folder: Path, *, progress: bool = False) -> Found:
    """The CT series, structure sets and segmentations anywhere below a folder. One CT series for each folder
    of files."""
    found: Found = {"CT": [], "RTSTRUCT": [], "SEG": []}
    folders = sorted({path.parent for path in folder.rglob("*") if path.is_file()})
    for series in tqdm(folders, desc="looking", disable=not progress):
        uids = set()
        for file in sorted(p for p in series.iterdir() if p.is_file()):
            header = header_of(file)
            if header is None:
                continue
            modality, uid = modality_of(header, file), text(header, "SeriesInstanceUID")
            if modality in found and (modality != "CT" or uid not in uids):
                found[modality].append((series if modality == "CT" else file, header))
                uids.add(uid)
    return found


def drawn_on(found: Found, whose: str | Path) -> tuple[tuple[Path, Any], tuple[Path, Any]]:
    """The CT and the structure set or segmentation that was drawn on it. Raises `ValueError` saying what is
    missing."""
    drawn = found["RTSTRUCT"] or found["SEG"]  # where both exist, the segmentation was made from the contours
    if not found["CT"] or not drawn:
        raise ValueError(f"{whose}: " + ("no CT series" if not found["CT"] else "no RTSTRUCT or SEG"))
    if len(drawn) > 1:
        names = ", ".join(file.name for file, _ in drawn)
        raise ValueError(
            f"{whose}: {len(drawn)} structure sets or segmentations ({names}); keep the one to learn from"
        )
    file, header = drawn[0]
    wanted = _referenced(header)
    matching = [pair for pair in found["CT"] if text(pair[1], "SeriesInstanceUID") == wanted] or found["CT"]
    patients = [text(one, "PatientID") for one in (header, matching[0][1])]
    if all(patients) and patients[0] != patients[1]:
        raise ValueError(
            f"{whose}: {file.name} belongs to the patient {patients[0]!r}, the CT to {patients[1]!r}; keep what "
            "belongs together in one folder"
        )
    if len(matching) > 1:
        raise ValueError(
            f"{whose}: {len(matching)} CT series, and {file.name} does not say which one it was drawn on"
        )
    return matching[0], drawn[0]


def _referenced(header: Any) -> str:
    """The SeriesInstanceUID that a structure set or segmentation was drawn on; "" when it does not say."""
    try:
        for frame in header.get("ReferencedFrameOfReferenceSequence", []):
            for study in frame.get("RTReferencedStudySequence", []):
                for series in study.get("RTReferencedSeriesSequence", []):
                    return str(series.SeriesInstanceUID)
        for series in header.get("ReferencedSeriesSequence", []):
            return str(series.SeriesInstanceUID)
    except (AttributeError, TypeError, ValueError):  # something else in the place of a sequence
        return ""
    return ""
