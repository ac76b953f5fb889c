"""Turn DICOM contours (RTSTRUCT) and segmentations (SEG) into masks on the grid of the scan.

Structures of one name are one label: their union. What lies outside the scan is told, never left out silently.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.volume.dicom import LPS_TO_RAS
from ctssl.volume.dicom_checks import MaskWarning, check_inside, check_reference, get_slice, is_outside
from ctssl.volume.dicom_file import decode_pixels, first_words, get_numbers, get_text, open_dicom
from ctssl.volume.dicom_slices import get_axes, get_pixel_spacing
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
    """Read the contours of an RTSTRUCT file as a mask on the grid of their scan.

    A voxel belongs to an ROI if its centre lies inside an odd number of the slice's contours (even-odd rule:
    a contour within another is a hole). Several ROIs of one name become their union. A warning counts the
    contours that lie outside the scan or are not closed, and names another series that the file refers to.

    Args:
        path: the RTSTRUCT file.
        scan: the CT that the contours were drawn on.
        roi: name of the ROI; required when the file holds several names.

    Raises:
        ValueError: not an RTSTRUCT, several names and none chosen, contours that do not lie in a slice, none
            that holds a voxel of the scan, or another frame of reference.
    """
    dataset = _open(path)
    if get_text(dataset, "Modality") != "RTSTRUCT":
        raise ValueError(f"{path} is {get_text(dataset, 'Modality', 'without a modality')}, not an RTSTRUCT")
    try:
        return Volume(_fill_contours(dataset, scan, roi, path), scan.affine, path.name)
    except BROKEN as error:
        raise _explain(error, path, "an RTSTRUCT") from error


def _fill_contours(dataset: Any, scan: Volume, roi: str | None, path: Path) -> np.ndarray:
    """Fill the contours of the ROIs of one name: uint8 on the scan's grid."""
    rois = {int(r.ROINumber): r for r in dataset.get("StructureSetROISequence", [])}
    drawn = [c for c in dataset.get("ROIContourSequence", []) if int(c.ReferencedROINumber) in rois]
    names = [str(rois[int(c.ReferencedROINumber)].ROIName) for c in drawn]
    name = _choose(names, roi, path)
    drawn = [c for c, its in zip(drawn, names, strict=True) if its == name]
    check_reference(dataset, [rois[int(c.ReferencedROINumber)] for c in drawn], scan, path)
    mask = np.zeros(scan.shape, bool)
    count = outside = 0
    slices = set()
    for one in drawn:
        filled = np.zeros(scan.shape, bool)
        for number, polygon in _polygons(one, scan, path):
            slices.add(number)
            count, outside = count + 1, outside + is_outside(number, polygon, scan)
            if 0 <= number < scan.shape[2]:
                _toggle(filled[:, :, number], polygon)
        mask |= filled
    if not count:
        raise ValueError(f"{path}: {name!r} has no closed contour; choose another, or leave this case out")
    check_inside(mask, outside, f"of {count} contours of {name!r}", scan, path)
    steps = np.diff(sorted(slices))
    if len(steps) > 1 and (steps > 1).mean() > 0.5:
        warnings.warn(
            f"{path}: the contours of {name!r} skip slices (they lie {int(np.median(steps))} slices apart), and the mask is "
            "empty between them; fill the gaps where it was drawn (interpolate), then export it again",
            MaskWarning,
            stacklevel=2,
        )
    return mask.astype(np.uint8)


def _polygons(roi: Any, scan: Volume, path: Path) -> list[tuple[int, np.ndarray]]:
    """Return the closed contours of an ROI: the slice that each lies in, and its corners in voxels `(n, 2)`.

    Of several with the same corners it returns one: listed twice, a contour would be its own hole.
    """
    contours = roi.get("ContourSequence") or []
    closed = [c for c in contours if "CLOSED" in c.ContourGeometricType]
    if len(closed) < len(contours):
        warnings.warn(
            f"{path}: {len(contours) - len(closed)} of {len(contours)} contours of ROI "
            f"{roi.ReferencedROINumber} are left out, because they are points or open lines",
            MaskWarning,
            stacklevel=2,
        )
    to_voxel = np.linalg.inv(scan.affine)
    polygons = {}
    for contour in closed:
        count = len(contour.ContourData) // 3
        points = np.array(get_numbers(contour, "ContourData", 3 * count, path)).reshape(-1, 3) @ LPS_TO_RAS
        voxels = points @ to_voxel[:3, :3].T + to_voxel[:3, 3]
        if not count or np.abs(voxels).max() > 1e6:
            raise ValueError(
                f"{path}: a contour lies far outside {scan.name}; it may belong to another series"
            )
        corners = frozenset(map(tuple, np.round(voxels, 3).tolist()))
        polygons[corners] = get_slice(voxels[:, 2], "contour", scan, path), voxels[:, :2]
    return list(polygons.values())


def _toggle(plane: np.ndarray, polygon: np.ndarray) -> None:
    """Invert the voxels `(X, Y)` whose centres lie inside a closed polygon of voxel coordinates `(n, 2)`."""
    for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, 0), strict=True):
        low, high = sorted((y0, y1))  # rows low <= y < high: a corner counts for one of its two edges
        for y in range(max(0, int(np.ceil(low))), min(plane.shape[1], int(np.ceil(high)))):
            x = x0 + (y - y0) / (y1 - y0) * (x1 - x0)
            plane[max(0, int(np.ceil(x))) :, y] ^= True  # toggles everything to the right of the edge


def read_seg(path: Path, scan: Volume, *, segment: str | None = None) -> Volume:
    """Read a DICOM-SEG file as a mask on the grid of a scan.

    Several segments of one name become their union. Fractions count above half of MaximumFractionalValue. A
    segment without a pixel in any frame is empty. A warning counts the frames that lie outside the scan, and
    names another series that the file refers to.

    Args:
        path: the DICOM-SEG file.
        scan: the CT that the segments were drawn on.
        segment: label of the segment; required when the file holds several labels.

    Raises:
        ValueError: not a DICOM-SEG of binary or fractional values, several labels and none chosen, frames that
            do not lie in a slice, none that holds a voxel of the scan, or another frame of reference.
    """
    dataset = _open(path)
    if get_text(dataset, "Modality") != "SEG":
        raise ValueError(
            f"{path} is {get_text(dataset, 'Modality', 'without a modality')}, not a DICOM segmentation"
        )
    try:
        return Volume(_place_frames(dataset, scan, segment, path), scan.affine, path.name)
    except BROKEN as error:
        raise _explain(error, path, "a DICOM segmentation") from error


def _place_frames(dataset: Any, scan: Volume, segment: str | None, path: Path) -> np.ndarray:
    """Resample each frame of the segments of one name onto its slice: uint8 on the scan's grid."""
    name = _choose([str(s.SegmentLabel) for s in dataset.SegmentSequence], segment, path)
    numbers = {int(s.SegmentNumber) for s in dataset.SegmentSequence if str(s.SegmentLabel) == name}
    check_reference(dataset, [], scan, path)
    threshold = _threshold(dataset, path)
    mask = np.zeros(scan.shape, bool)
    count = outside = 0
    for pixels, affine in _frames(dataset, numbers, scan, path):
        if not pixels.any():
            continue
        frame = pixels > threshold
        to_voxel = np.linalg.inv(scan.affine) @ affine
        ends = [[x, y, 0, 1] for x in (0, frame.shape[0] - 1) for y in (0, frame.shape[1] - 1)]
        number = get_slice((ends @ to_voxel.T)[:, 2], "frame", scan, path)
        voxels = to_voxel[:2, :2] @ np.nonzero(frame) + to_voxel[:2, 3:]  # (2, pixels)
        count, outside = count + 1, outside + is_outside(number, voxels.T, scan)
        if 0 <= number < scan.shape[2]:
            grid = scan.affine.copy()
            grid[:3, 3] += grid[:3, 2] * number
            affine[:3, 3] -= affine[:3, 2] / 2
            layers = np.repeat(frame[..., None], 2, axis=2)  # (X, Y, 2): it may lie up to 0.3 slices beside
            mask[:, :, number] |= resample(layers, affine, (*scan.shape[:2], 1), grid)[..., 0] > 0.5
    if count:
        check_inside(mask, outside, f"of {count} frames of {name!r}", scan, path)
    return mask.astype(np.uint8)


def _frames(
    dataset: Any, numbers: set[int], scan: Volume, path: Path
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the frames of some segments `(X, Y)`, with the 4x4 affine from pixels to RAS+ mm.

    The third axis of the affine is that of the scan.
    """
    sizes = [
        int(get_numbers(dataset, key, 1, path, default=1)[0]) for key in ("NumberOfFrames", "Rows", "Columns")
    ]
    if min(sizes) < 1 or int(np.prod([float(n) for n in sizes])) > VOXELS:
        raise ValueError(f"{path} declares {' x '.join(map(str, sizes))} pixels; ctssl reads up to {VOXELS}")
    pixels = decode_pixels(dataset, path).reshape(sizes)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for frame, group in zip(pixels, dataset.PerFrameFunctionalGroupsSequence, strict=True):
        identity, position, plane, measures = (
            (group.get(key) or shared[key].value)[0]  # what all frames have in common may be shared
            for key in (
                "SegmentIdentificationSequence",
                "PlanePositionSequence",
                "PlaneOrientationSequence",
                "PixelMeasuresSequence",
            )
        )
        if int(identity.ReferencedSegmentNumber) in numbers:
            row, column = get_axes(plane, path)
            down, across = get_pixel_spacing(measures, path)
            place = get_numbers(position, "ImagePositionPatient", 3, path)
            affine = scan.affine.copy()
            affine[:3, [0, 1, 3]] = LPS_TO_RAS @ np.stack([row * across, column * down, place], 1)
            yield frame.T, affine


def _threshold(dataset: Any, path: Path) -> float:
    """Return the pixel value above which a pixel belongs to its segment."""
    kind = get_text(dataset, "SegmentationType", "BINARY")
    if kind not in ("BINARY", "FRACTIONAL"):
        raise ValueError(
            f"{path} is a {kind} segmentation; ctssl reads BINARY and FRACTIONAL ones: convert it, for "
            "example with highdicom"
        )
    return get_numbers(dataset, "MaximumFractionalValue", 1, path)[0] / 2 if kind == "FRACTIONAL" else 0.0


def _explain(error: Exception, path: Path, what: str) -> Exception:
    """Return the error itself if it names the file, otherwise one that does."""
    if isinstance(error, ValueError) and str(path) in str(error):
        return error
    return ValueError(
        f"{path} is damaged or lacks what {what} must contain ({first_words(error)}); download it again"
    )


def _open(path: Path) -> Any:
    dataset = open_dicom(path)
    if dataset is None:
        raise ValueError(f"{path} is damaged or not a DICOM file; download it again")
    return dataset


def _choose(names: list[str], name: str | None, path: Path) -> str:
    """Return the name that is asked for, or the only one."""
    distinct = sorted(set(names))
    listed = ", ".join(map(repr, distinct)) or "none"
    if name is None and len(distinct) != 1:
        raise ValueError(f"{path} holds {len(distinct)} structures ({listed}); choose one (--roi NAME)")
    if name is not None and name not in distinct:
        raise ValueError(f"{path} has no structure {name!r}; it has {listed}")
    return name or distinct[0]
