"""Turn DICOM contours (RTSTRUCT) and segmentations (SEG) into masks on the grid of the scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ctssl.volume.dicom import LPS_TO_RAS
from ctssl.volume.dicom_file import decode_pixels, get_numbers, get_text, open_dicom
from ctssl.volume.grids import resample
from ctssl.volume.nifti import VOXELS
from ctssl.volume.volume import Volume

BROKEN = (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, NotImplementedError)
"""What pydicom raises for an element that is missing or of another type than the standard says."""


def read_annotation(path: Path, scan: Volume, *, roi: str | None = None) -> Volume:
    """Read an RTSTRUCT or SEG file as a mask on the grid of `scan`; see `read_rtstruct` and `read_seg`."""
    if get_text(_open(path), "Modality") == "SEG":
        return read_seg(path, scan, segment=roi)
    return read_rtstruct(path, scan, roi=roi)


def read_rtstruct(path: Path, scan: Volume, *, roi: str | None = None) -> Volume:
    """Read the contours of one ROI of an RTSTRUCT file as a mask on the grid of their scan.

    A voxel belongs to the ROI if its centre lies inside an odd number of the slice's contours (even-odd rule:
    a contour within another is a hole).

    Args:
        path: the RTSTRUCT file.
        scan: the CT that the contours were drawn on.
        roi: name of the ROI; required when the file holds several.

    Raises:
        ValueError: not an RTSTRUCT, several ROIs and none named, or contours outside the scan's slices.
    """
    dataset = _open(path)
    if get_text(dataset, "Modality") != "RTSTRUCT":
        raise ValueError(f"{path} is {get_text(dataset, 'Modality', 'without a modality')}, not an RTSTRUCT")
    try:
        return Volume(_fill_contours(dataset, scan, roi, path), scan.affine, path.name)
    except BROKEN as error:
        raise _explain(error, path, "an RTSTRUCT") from error


def _fill_contours(dataset: Any, scan: Volume, roi: str | None, path: Path) -> np.ndarray:
    """Fill the contours of one ROI: uint8 on the scan's grid."""
    names = {int(r.ROINumber): str(r.ROIName) for r in dataset.get("StructureSetROISequence", [])}
    rois = {
        names[int(c.ReferencedROINumber)]: c
        for c in dataset.get("ROIContourSequence", [])
        if int(c.ReferencedROINumber) in names
    }
    contours = [
        c for c in _choose(rois, roi, path).get("ContourSequence", []) if "CLOSED" in c.ContourGeometricType
    ]
    to_voxel = np.linalg.inv(scan.affine)
    mask = np.zeros(scan.shape, bool)
    for contour in contours:
        count = len(contour.ContourData) // 3
        points = np.array(get_numbers(contour, "ContourData", 3 * count, path)).reshape(-1, 3) @ LPS_TO_RAS
        voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        if not count or np.abs(voxels).max() > 1e6:
            raise ValueError(
                f"{path}: a contour lies far outside {scan.name}; it may belong to another series"
            )
        number = round(float(voxels[:, 2].mean()))
        if np.abs(voxels[:, 2] - number).max() > 0.3:
            raise ValueError(
                f"{path}: a contour does not lie in a slice of {scan.name}; it may belong to another series"
            )
        if 0 <= number < scan.shape[2]:
            _toggle(mask[:, :, number], voxels[:, :2])
    return mask.astype(np.uint8)


def _toggle(plane: np.ndarray, polygon: np.ndarray) -> None:
    """Invert the voxels `(X, Y)` whose centres lie inside a closed polygon of voxel coordinates `(n, 2)`."""
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        low, high = sorted((y0, y1))  # rows low <= y < high: a corner counts for one of its two edges
        for y in range(max(0, int(np.ceil(low))), min(plane.shape[1], int(np.ceil(high)))):
            x = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
            plane[max(0, int(np.ceil(x))) :, y] ^= True  # toggles everything to the right of the edge


def read_seg(path: Path, scan: Volume, *, segment: str | None = None) -> Volume:
    """Read one segment of a DICOM-SEG file as a mask on the grid of a scan.

    Raises `ValueError` for another kind of file, and for several segments when none is named.
    """
    dataset = _open(path)
    if get_text(dataset, "Modality") != "SEG":
        raise ValueError(
            f"{path} is {get_text(dataset, 'Modality', 'without a modality')}, not a DICOM segmentation"
        )
    try:
        return _read_frames(dataset, scan, segment, path)
    except BROKEN as error:
        raise _explain(error, path, "a DICOM segmentation") from error


def _read_frames(dataset: Any, scan: Volume, segment: str | None, path: Path) -> Volume:
    """Resample each frame of one segment onto the slice of the scan that it lies in."""
    number = int(
        _choose({str(s.SegmentLabel): s for s in dataset.SegmentSequence}, segment, path).SegmentNumber
    )
    shared = dataset.SharedFunctionalGroupsSequence[0]
    frames: list[tuple[np.ndarray, np.ndarray]] = []
    sizes = [
        int(get_numbers(dataset, key, 1, path, default=1)[0]) for key in ("NumberOfFrames", "Rows", "Columns")
    ]
    if min(sizes) < 1 or int(np.prod([float(n) for n in sizes])) > VOXELS:
        raise ValueError(f"{path} declares {' x '.join(map(str, sizes))} pixels; ctssl reads up to {VOXELS}")
    pixels = decode_pixels(dataset, path).reshape(sizes)
    for frame, group in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        if int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber) == number:
            place = get_numbers(group.PlanePositionSequence[0], "ImagePositionPatient", 3, path)
            frames.append((np.array(place), frame > 0))
            orientation = group.get("PlaneOrientationSequence") or shared.PlaneOrientationSequence
            measures = group.get("PixelMeasuresSequence") or shared.PixelMeasuresSequence
    if not frames:
        return Volume(np.zeros(scan.shape, np.uint8), scan.affine, path.name)
    row, column = np.array(get_numbers(orientation[0], "ImageOrientationPatient", 6, path)).reshape(2, 3)
    down, across = get_numbers(measures[0], "PixelSpacing", 2, path)
    normal = LPS_TO_RAS @ np.cross(row, column)
    to_voxel = np.linalg.inv(scan.affine)
    mask = np.zeros(scan.shape, np.float32)
    depth = float(np.abs(normal @ scan.affine[:3, 2]))
    for place, frame in frames:  # one at a time: a segmentation may skip slices
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


def _explain(error: Exception, path: Path, what: str) -> Exception:
    """Return the error itself if it names the file, otherwise one that does."""
    if isinstance(error, ValueError) and str(path) in str(error):
        return error
    words = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ValueError(f"{path} is damaged or lacks what {what} must contain ({words}); download it again")


def _open(path: Path) -> Any:
    dataset = open_dicom(path)
    if dataset is None:
        raise ValueError(f"{path} is damaged or not a DICOM file; download it again")
    return dataset


def _choose(structures: dict[str, Any], name: str | None, path: Path) -> Any:
    listed = ", ".join(map(repr, sorted(structures))) or "none"
    if name is None and len(structures) != 1:
        raise ValueError(f"{path} holds {len(structures)} structures ({listed}); choose one (--roi NAME)")
    if name is not None and name not in structures:
        raise ValueError(f"{path} has no structure {name!r}; it has {listed}")
    return structures[name or next(iter(structures))]
