"""Read DICOM folders. Needs pydicom: `pip install 'ctssl[dicom]'`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ctssl.files.walk import files_below
from ctssl.volume.dicom_file import decode_pixels, get_modality, get_numbers, get_text, read_header
from ctssl.volume.dicom_slices import get_axes, get_pixel_spacing, order_slices

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(path: Path, *, series: str | None = None) -> tuple[np.ndarray, np.ndarray, Any]:
    """Read the CT series of a folder, or of the folder that holds the given file.

    Args:
        path: a folder, or one DICOM file of the series.
        series: SeriesInstanceUID; required when the folder holds several CT series of more than one image.

    Returns:
        HU as float32 `(X, Y, Z)`, the 4x4 affine from voxels to RAS+ mm, and the dataset of the first slice.

    Raises:
        ValueError: several series and none chosen, slices that do not form one regular grid of one patient,
            or not CT.
    """
    folder = path if path.is_dir() else path.parent
    slices, line = read_slices(path, series=series)
    return *_stack(slices, line, folder), slices[0]


def read_slices(path: Path, *, series: str | None = None) -> tuple[list[Any], np.ndarray]:
    """Read the images of one series with their pixels, sorted along the slice normal.

    Arguments and errors are those of `read_series`. Returns the datasets and the line of their positions, as
    `order_slices`.
    """
    folder = path if path.is_dir() else path.parent
    return order_slices([file for file, _ in _one_series(path, series)], folder)


def read_slice_headers(path: Path, *, series: str | None = None) -> tuple[list[Any], np.ndarray]:
    """Read what `read_slices` returns, but without pixels; arguments and errors are the same."""
    folder = path if path.is_dir() else path.parent
    files, headers = zip(*_one_series(path, series), strict=True)
    return order_slices(list(files), folder, list(headers))


def read_series_grid(path: Path, *, series: str | None = None) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the shape and the affine of `read_series` from the headers alone; arguments and errors are the same."""
    return grid_of(*read_slice_headers(path, series=series), path if path.is_dir() else path.parent)


def grid_of(slices: list[Any], line: np.ndarray, folder: Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Return the shape and the 4x4 affine (voxels to RAS+ mm) of the slices of a series in order."""
    return (int(slices[0].Columns), int(slices[0].Rows), len(slices)), _affine(slices[0], line, folder)


def _one_series(path: Path, series: str | None) -> list[tuple[Path, Any]]:
    """Return the files and headers of the series of a file, or, of a folder, of the one chosen, the only one, or the only CT
    with several images (beside a PET, or a localiser)."""
    folder = path if path.is_dir() else path.parent
    headers = _read_headers(folder)
    if series is None and folder != path:
        series = next((uid for uid, files in headers.items() if path in (file for file, _ in files)), None)
    if series is None:
        scans = [uid for uid, files in headers.items() if len(files) > 1 and _is_ct(*files[0])]
        series = scans[0] if len(scans) == 1 else None
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
    return headers[series or next(iter(headers))]


def _read_headers(folder: Path) -> dict[str, list[tuple[Path, Any]]]:
    """Return the headers of all image files by SeriesInstanceUID.

    Files that are not DICOM images are skipped (DICOMDIR, RTSTRUCT, text).
    """
    headers = defaultdict(list)
    for file in files_below(folder):
        header = read_header(file) if file.is_file() and file.name != "DICOMDIR" else None
        if header is None or get_modality(header, file) in ("SEG", "RTSTRUCT", ""):
            continue
        if "Rows" in header and "SeriesInstanceUID" in header:
            headers[get_text(header, "SeriesInstanceUID")].append((file, header))
    return headers


def _is_ct(file: Path, header: Any) -> bool:
    return get_modality(header, file) == "CT"


def _describe(header: Any) -> str:
    words = [get_text(header, key) for key in ("Modality", "SeriesDescription", "ConvolutionKernel")]
    return ", ".join(word for word in words if word)


def _stack(slices: list[Any], line: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    images = []
    for s in slices:
        file = Path(s.filename)
        slope, intercept = (
            get_numbers(s, key, 1, file, default=value)[0]
            for key, value in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
        )
        images.append(decode_pixels(s, file).astype(np.float32) * slope + intercept)  # (rows, columns)
    array = np.stack(images, -1).transpose(1, 0, 2)  # (columns, rows, slices) = (X, Y, Z)
    return np.ascontiguousarray(array), _affine(slices[0], line, folder)


def _affine(image: Any, line: np.ndarray, folder: Path) -> np.ndarray:
    """Return the 4x4 affine from voxels to RAS+ mm of a series with the line of its positions."""
    row, column = get_axes(image, folder)
    down, across = get_pixel_spacing(image, folder)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * across, column * down
    affine[:3, 3], affine[:3, 2] = line  # keeps a gantry tilt
    affine[:3] = LPS_TO_RAS @ affine[:3]
    return affine


Found = dict[str, list[tuple[Path, Any]]]  # modality -> (folder of the series, or file; header)


def find_series(folder: Path, *, progress: bool = False) -> Found:
    """Find the CT series, structure sets and segmentations anywhere below a folder.

    Returns:
        For each of "CT", "RTSTRUCT" and "SEG" a list of (path, header). The path of a CT series is its
        folder; it is listed once per folder.
    """
    found: Found = {"CT": [], "RTSTRUCT": [], "SEG": []}
    folders = sorted({path.parent for path in files_below(folder)})
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
    wanted = referenced_series(header)
    matching = [pair for pair in found["CT"] if get_text(pair[1], "SeriesInstanceUID") in wanted]
    matching = matching or found["CT"]
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


def referenced_series(header: Any) -> set[str]:
    """Return the SeriesInstanceUIDs that a structure set or segmentation refers to."""
    try:
        series = [
            one
            for frame in header.get("ReferencedFrameOfReferenceSequence", [])
            for study in frame.get("RTReferencedStudySequence", [])
            for one in study.get("RTReferencedSeriesSequence", [])
        ]
        series += header.get("ReferencedSeriesSequence", [])
        return {get_text(one, "SeriesInstanceUID") for one in series} - {""}
    except (AttributeError, TypeError, ValueError):  # something other than a sequence
        return set()
