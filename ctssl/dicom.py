"""DICOM folders. Needs pydicom: `pip install 'ctssl[dicom]'`."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ctssl.volume import Volume, resample

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0])


def read_series(path: Path, *, series: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """The CT series of a folder (or of the folder of one file): HU `(X, Y, Z)` float32 and RAS affine.

    Raises `ValueError` when there are several series and none was chosen, when slices are missing or doubled, and
    when it is not CT.
    """
    folder = path if path.is_dir() else path.parent
    slices, places = ordered_slices(path, series=series)
    return _stack(slices, places, folder)


def ordered_slices(path: Path, *, series: str | None = None) -> tuple[list[Any], np.ndarray]:
    """The images of one series with their pixels, along its normal, and their places `(n, 3)` in DICOM's mm; see
    `read_series`."""
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
    return _checked([file for file, _ in found[series or next(iter(found))]], folder)


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


def _checked(files: list[Path], folder: Path) -> tuple[list[Any], np.ndarray]:
    """The slices of a series that is one regular grid, in order."""
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
    return slices, places


def _stack(slices: list[Any], places: np.ndarray, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    first, images = slices[0], []
    row, column = np.array(first.ImageOrientationPatient, float).reshape(2, 3)
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


def read_rtstruct(path: Path, scan: Volume, *, roi: str | None = None) -> Volume:
    """The contours of one ROI of an RTSTRUCT file as a mask on the grid of their scan.

    A voxel belongs to the ROI when its centre lies inside an odd number of the slice's contours (even-odd: a contour
    within another is a hole). Raises `ValueError` for another file, for several ROIs when none is named, and for
    contours that do not lie in slices of the scan.
    """
    dataset = _dataset(path)
    if dataset.get("Modality") != "RTSTRUCT":
        raise ValueError(f"{path} is {dataset.get('Modality', 'no RTSTRUCT')}, not an RTSTRUCT")
    names = {int(r.ROINumber): str(r.ROIName) for r in dataset.get("StructureSetROISequence", [])}
    found = {names[int(c.ReferencedROINumber)]: c for c in dataset.get("ROIContourSequence", [])
             if int(c.ReferencedROINumber) in names}  # fmt: skip
    contours = [c for c in _chosen(found, roi, path).get("ContourSequence", []) if "CLOSED" in c.ContourGeometricType]
    to_voxel = np.linalg.inv(scan.affine)
    mask = np.zeros(scan.shape, bool)
    for contour in contours:
        points = np.array(contour.ContourData, float).reshape(-1, 3) @ LPS_TO_RAS
        voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        number = round(float(voxels[:, 2].mean()))
        if np.abs(voxels[:, 2] - number).max() > 0.3:
            raise ValueError(
                f"{path}: a contour does not lie in a slice of {scan.name}; does it belong to another series?"
            )
        if 0 <= number < scan.shape[2]:
            _toggle(mask[:, :, number], voxels[:, :2])
    return Volume(mask.astype(np.uint8), scan.affine, path.name)


def _toggle(plane: np.ndarray, polygon: np.ndarray) -> None:
    """Invert the voxels `(X, Y)` whose centres lie inside a closed polygon of voxel places `(n, 2)`."""
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        low, high = sorted((y0, y1))  # rows low <= y < high: a corner counts for one of its two edges
        for y in range(max(0, int(np.ceil(low))), min(plane.shape[1], int(np.ceil(high)))):
            x = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
            plane[max(0, int(np.ceil(x))) :, y] ^= True  # everything to the right of an edge changes sides


def read_seg(path: Path, scan: Volume, *, segment: str | None = None) -> Volume:
    """One segment of a DICOM-SEG file as a mask on the grid of a scan."""
    dataset = _dataset(path)
    if dataset.get("Modality") != "SEG":
        raise ValueError(f"{path} is {dataset.get('Modality', 'no SEG')}, not a DICOM segmentation")
    number = int(_chosen({str(s.SegmentLabel): s for s in dataset.SegmentSequence}, segment, path).SegmentNumber)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    frames: list[tuple[np.ndarray, np.ndarray]] = []
    pixels = dataset.pixel_array.reshape(-1, int(dataset.Rows), int(dataset.Columns))
    for frame, group in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) == number:
            frames.append((np.array(group.PlanePositionSequence[0].ImagePositionPatient, float), frame > 0))
            orientation = group.get("PlaneOrientationSequence") or shared.PlaneOrientationSequence
            measures = group.get("PixelMeasuresSequence") or shared.PixelMeasuresSequence
    if not frames:
        return Volume(np.zeros(scan.shape, np.uint8), scan.affine, path.name)
    row, column = np.array(orientation[0].ImageOrientationPatient, float).reshape(2, 3)
    down, across = map(float, measures[0].PixelSpacing)
    normal = LPS_TO_RAS @ np.cross(row, column)
    to_voxel = np.linalg.inv(scan.affine)
    mask = np.zeros(scan.shape, np.float32)
    depth = float(np.abs(normal @ scan.affine[:3, 2]))
    for place, frame in frames:  # one at a time: a segmentation may leave slices out
        own = np.eye(4)
        own[:3, 0], own[:3, 1] = LPS_TO_RAS @ row * across, LPS_TO_RAS @ column * down
        own[:3, 2], own[:3, 3] = normal * depth, LPS_TO_RAS @ place
        k = round(float((to_voxel @ own[:, 3])[2]))
        if 0 <= k < scan.shape[2]:
            grid = scan.affine.copy()
            grid[:3, 3] = scan.affine[:3, 3] + scan.affine[:3, 2] * k
            slab = resample(frame.T[..., None].astype(np.float32), own, (*scan.shape[:2], 1), grid)
            mask[:, :, k] = np.maximum(mask[:, :, k], slab[..., 0])
    return Volume((mask > 0.5).astype(np.uint8), scan.affine, path.name)


def read_drawn(path: Path, scan: Volume, *, roi: str | None = None) -> Volume:
    """`read_rtstruct` or `read_seg`, whichever the file is."""
    if _dataset(path).get("Modality") == "SEG":
        return read_seg(path, scan, segment=roi)
    return read_rtstruct(path, scan, roi=roi)


Found = dict[str, list[tuple[Path, Any]]]  # modality -> (folder of the series, or file; header)


def find_series(folder: Path, *, progress: bool = False) -> Found:
    """The CT series, structure sets and segmentations anywhere below a folder. One CT series for each folder of files."""
    pydicom = _pydicom()
    found: Found = {"CT": [], "RTSTRUCT": [], "SEG": []}
    folders = sorted({path.parent for path in folder.rglob("*") if path.is_file()})
    for series in tqdm(folders, desc="looking", disable=not progress):
        uids = set()
        for file in sorted(p for p in series.iterdir() if p.is_file()):
            try:
                header = pydicom.dcmread(file, stop_before_pixels=True)
            except (pydicom.errors.InvalidDicomError, OSError, EOFError):
                continue
            modality, uid = str(header.get("Modality", "")), str(header.get("SeriesInstanceUID", ""))
            if modality in found and (modality != "CT" or uid not in uids):
                found[modality].append((series if modality == "CT" else file, header))
                uids.add(uid)
    return found


def drawn_on(found: Found, whose: str | Path) -> tuple[tuple[Path, Any], tuple[Path, Any]]:
    """The CT and the structure set or segmentation that was drawn on it. Raises `ValueError` saying what is missing."""
    drawn = found["RTSTRUCT"] or found["SEG"]  # where both exist, the segmentation was made from the contours
    if not found["CT"] or not drawn:
        raise ValueError(f"{whose}: " + ("no CT series" if not found["CT"] else "no RTSTRUCT or SEG"))
    if len(drawn) > 1:
        names = ", ".join(file.name for file, _ in drawn)
        raise ValueError(f"{whose}: {len(drawn)} structure sets or segmentations ({names}); keep the one to learn from")
    file, header = drawn[0]
    wanted = _referenced(header)
    matching = [pair for pair in found["CT"] if str(pair[1].SeriesInstanceUID) == wanted] or found["CT"]
    if len(matching) > 1:
        raise ValueError(f"{whose}: {len(matching)} CT series, and {file.name} does not say which one it was drawn on")
    return matching[0], drawn[0]


def _referenced(header: Any) -> str:
    """The SeriesInstanceUID that a structure set or segmentation was drawn on; "" when it does not say."""
    for frame in header.get("ReferencedFrameOfReferenceSequence", []):
        for study in frame.get("RTReferencedStudySequence", []):
            for series in study.get("RTReferencedSeriesSequence", []):
                return str(series.SeriesInstanceUID)
    for series in header.get("ReferencedSeriesSequence", []):
        return str(series.SeriesInstanceUID)
    return ""


def _dataset(path: Path) -> Any:
    pydicom = _pydicom()
    try:
        return pydicom.dcmread(path)
    except (pydicom.errors.InvalidDicomError, OSError, EOFError) as error:
        raise ValueError(f"{path} is damaged or no DICOM file ({error})") from error


def _chosen(found: dict[str, Any], name: str | None, path: Path) -> Any:
    listed = ", ".join(map(repr, sorted(found))) or "none"
    if name is None and len(found) != 1:
        raise ValueError(f"{path} holds {len(found)} structures ({listed}); choose one (--roi NAME)")
    if name is not None and name not in found:
        raise ValueError(f"{path} has no structure {name!r}; it has {listed}")
    return found[name or next(iter(found))]
