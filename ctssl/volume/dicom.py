"""Read DICOM folders. Needs pydicom: `pip install 'ctssl[dicom]'`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ctssl.volume.dicom_file import (
    check_one_image,
    decode_pixels,
    get_modality,
    get_numbers,
    get_text,
    open_dicom,
    read_header,
)

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(path: Path, *, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read the CT series of a folder, or of the folder that holds the given file.

    Args:
        path: a folder, or one DICOM file of the series.
        series: SeriesInstanceUID; required when the folder holds several series.

    Returns:
        HU as float32 `(X, Y, Z)`, and the 4x4 affine from voxels to RAS+ mm.

    Raises:
        ValueError: several series and none chosen, missing or duplicate slices, or not CT.
    """
    folder = path if path.is_dir() else path.parent
    slices, places = read_slices(path, series=series)
    return _stack(slices, places, folder)


def read_slices(path: Path, *, series: str | None = None) -> tuple[list[Any], np.ndarray]:
    """Read the images of one series with their pixels, sorted along the slice normal.

    Arguments and errors are those of `read_series`. Returns the datasets and their positions `(n, 3)` in
    DICOM (LPS) mm.
    """
    folder = path if path.is_dir() else path.parent
    headers = _read_headers(folder)
    if not headers:
        raise ValueError(f"{folder} holds no DICOM images; give a folder with a DICOM series or a NIfTI file")
    if series is None and len(headers) > 1:
        lines = [
            f"  {uid}  {len(files)} images  {_describe(files[0][1])}"
            for uid, files in sorted(headers.items())
        ]
        raise ValueError(
            f"{folder} holds {len(headers)} series; choose one (series=..., or --series):\n"
            + "\n".join(lines)
        )
    if series is not None and series not in headers:
        raise ValueError(f"{folder} has no series {series}; it has {', '.join(sorted(headers))}")
    return _order_slices([file for file, _ in headers[series or next(iter(headers))]], folder)


def _read_headers(folder: Path) -> dict[str, list[tuple[Path, Any]]]:
    """Return the headers of all image files by SeriesInstanceUID.

    Files that are not DICOM images are skipped (DICOMDIR, RTSTRUCT, text).
    """
    headers = defaultdict(list)
    for file in sorted(folder.rglob("*")):
        header = read_header(file) if file.is_file() and file.name != "DICOMDIR" else None
        if header is None or get_modality(header, file) in ("SEG", "RTSTRUCT", ""):
            continue
        if "Rows" in header and "SeriesInstanceUID" in header:
            headers[get_text(header, "SeriesInstanceUID")].append((file, header))
    return headers


def _describe(header: Any) -> str:
    words = [get_text(header, key) for key in ("Modality", "SeriesDescription", "ConvolutionKernel")]
    return ", ".join(word for word in words if word)


def _order_slices(files: list[Path], folder: Path) -> tuple[list[Any], np.ndarray]:
    """Open the slices of a series in order. Raises `ValueError` unless they form one regular grid."""
    slices = [open_dicom(file) for file in files]
    for s, file in zip(slices, files, strict=True):
        if get_text(s, "Modality", "CT") != "CT":
            raise ValueError(f"{folder} holds {get_text(s, 'Modality')}, not CT ({file.name})")
    if len(slices) < 2:
        raise ValueError(
            f"{folder} holds only one image of this series; add the others (for enhanced multi-frame DICOM, "
            "convert it with dcm2niix)"
        )
    for key in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        if any(key not in s for s in slices):
            raise ValueError(
                f"{folder}: {key} is missing, so the geometry is unknown; export the series again"
            )
    same = {_plane(s, file, len(files)) for s, file in zip(slices, files, strict=True)}
    if len(same) > 1:
        raise ValueError(
            f"{folder}: slices of this series differ in size, spacing or orientation; move the odd ones "
            "(such as a localiser) to another folder"
        )
    row, column = np.array(_orientation(slices[0], files[0])).reshape(2, 3)  # along columns, along rows
    normal = np.cross(row, column)
    places = np.array(
        [get_numbers(s, "ImagePositionPatient", 3, file) for s, file in zip(slices, files, strict=True)]
    )
    order = np.argsort(places @ normal)
    slices, places = [slices[i] for i in order], places[order]
    gaps = np.diff(places @ normal)
    gap = float(np.median(gaps))
    if (gaps < 0.01).any():
        raise ValueError(
            f"{folder}: two images lie at the same place; split the series into one folder per phase"
        )
    if (np.abs(gaps - gap) > max(0.1 * gap, 0.02)).any():
        where = int(np.abs(gaps - gap).argmax())
        raise ValueError(
            f"{folder}: slices are missing: the spacing is {gap:.3g} mm, but {gaps[where]:.3g} mm after "
            f"slice {where + 1} of {len(slices)}; download the whole series"
        )
    return slices, places


def _plane(image: Any, file: Path, images: int) -> tuple[Any, ...]:
    """Return what all images of a series must share: size, spacing and orientation."""
    spacing = get_numbers(image, "PixelSpacing", 2, file)
    if min(spacing) <= 0:
        raise ValueError(f"{file}: invalid PixelSpacing {spacing} (must be > 0)")
    return (
        *check_one_image(image, file, images=images),
        spacing,
        tuple(np.round(_orientation(image, file), 4)),
    )


def _orientation(image: Any, file: Path) -> tuple[float, ...]:
    """Return the directions of a row and of a column: six numbers, two perpendicular unit vectors."""
    cosines = get_numbers(image, "ImageOrientationPatient", 6, file)
    axes = np.array(cosines).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01:
        raise ValueError(
            f"{file}: invalid ImageOrientationPatient {cosines} (needs two perpendicular unit vectors); "
            "download it again"
        )
    return cosines


def _stack(slices: list[Any], places: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images = []
    row, column = np.array(_orientation(slices[0], folder)).reshape(2, 3)
    for s in slices:
        file = Path(s.filename)
        slope, intercept = (
            get_numbers(s, key, 1, file, default=value)[0]
            for key, value in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        images.append(decode_pixels(s, file).astype(np.float32) * slope + intercept)  # (rows, columns)
    array = np.stack(images, -1).transpose(1, 0, 2)  # (columns, rows, slices) = (X, Y, Z)
    down, across = get_numbers(slices[0], "PixelSpacing", 2, folder)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * across, column * down
    affine[:3, 2] = (places[-1] - places[0]) / (len(slices) - 1)  # keeps a gantry tilt
    affine[:3, 3] = places[0]
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return np.ascontiguousarray(array), affine


Found = dict[str, list[tuple[Path, Any]]]  # modality -> (folder of the series, or file; header)


def find_series(folder: Path, *, progress: bool = False) -> Found:
    """Find the CT series, structure sets and segmentations anywhere below a folder.

    Returns:
        For each of "CT", "RTSTRUCT" and "SEG" a list of (path, header). The path of a CT series is its
        folder; it is listed once per folder.
    """
    found: Found = {"CT": [], "RTSTRUCT": [], "SEG": []}
    folders = sorted({path.parent for path in folder.rglob("*") if path.is_file()})
    for series in tqdm(folders, desc="searching", disable=not progress):
        uids = set()
        for file in sorted(p for p in series.iterdir() if p.is_file()):
            header = read_header(file)
            if header is None:
                continue
            modality, uid = get_modality(header, file), get_text(header, "SeriesInstanceUID")
            if modality in found and (modality != "CT" or uid not in uids):
                found[modality].append((series if modality == "CT" else file, header))
                uids.add(uid)
    return found


def match_annotation(found: Found, whose: str | Path) -> tuple[tuple[Path, Any], tuple[Path, Any]]:
    """Return a structure set or segmentation and the CT series that it was drawn on, as `(CT, annotation)`.

    Args:
        found: the result of `find_series` for one patient.
        whose: name of the patient or folder, for error messages.

    Raises:
        ValueError: one of the two is missing or ambiguous, or they belong to different patients.
    """
    drawn = found["RTSTRUCT"] or found["SEG"]  # where both exist, the segmentation was made from the contours
    if not found["CT"] or not drawn:
        raise ValueError(f"{whose}: " + ("no CT series" if not found["CT"] else "no RTSTRUCT or SEG"))
    if len(drawn) > 1:
        names = ", ".join(file.name for file, _ in drawn)
        raise ValueError(
            f"{whose}: {len(drawn)} structure sets or segmentations ({names}); keep the one to train on"
        )
    file, header = drawn[0]
    wanted = _referenced(header)
    matching = [pair for pair in found["CT"] if get_text(pair[1], "SeriesInstanceUID") == wanted] or found[
        "CT"
    ]
    patients = [get_text(one, "PatientID") for one in (header, matching[0][1])]
    if all(patients) and patients[0] != patients[1]:
        raise ValueError(
            f"{whose}: {file.name} belongs to patient {patients[0]!r}, the CT to patient {patients[1]!r}; "
            "use one folder per patient"
        )
    if len(matching) > 1:
        raise ValueError(
            f"{whose}: {len(matching)} CT series, and {file.name} does not say which one it was drawn on; "
            "keep one"
        )
    return matching[0], drawn[0]


def _referenced(header: Any) -> str:
    """Return the SeriesInstanceUID that a structure set or segmentation refers to; "" if it names none."""
    try:
        for frame in header.get("ReferencedFrameOfReferenceSequence", []):
            for study in frame.get("RTReferencedStudySequence", []):
                for series in study.get("RTReferencedSeriesSequence", []):
                    return str(series.SeriesInstanceUID)
        for series in header.get("ReferencedSeriesSequence", []):
            return str(series.SeriesInstanceUID)
    except (AttributeError, TypeError, ValueError):  # something other than a sequence
        return ""
    return ""
