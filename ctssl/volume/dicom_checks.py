"""Check that the contours or frames of a DICOM mask belong to a scan: where they lie, and what they refer to."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.volume.dicom import grid_of, referenced_series
from ctssl.volume.dicom_file import get_text
from ctssl.volume.volume import Volume, check_grid


class MaskWarning(UserWarning):
    """A DICOM mask of which something is left out, or that names another series than its scan."""


def check_on_series(mask: Volume, slices: list[Any], line: np.ndarray, source: Path) -> None:
    """Raise `ValueError` unless a mask lies on the grid of the ordered slices of the series in `source`."""
    shape, affine = grid_of(slices, line, source)
    series = Volume(np.broadcast_to(np.uint8(0), shape), affine, f"the series in {source.name}")
    check_grid(series, mask, "the mask", "give the mask of this series, on its own grid")


def get_slice(k: np.ndarray, what: str, scan: Volume, path: Path) -> int:
    """Return the slice that points with these voxel coordinates along the third axis lie in."""
    number = round(float(k.mean()))
    if np.abs(k - number).max() > 0.3:
        raise ValueError(
            f"{path}: a {what} does not lie in one slice of {scan.name} (its corners lie in "
            f"slices {k.min():.2f} to {k.max():.2f}), so it is tilted or belongs to another series; give the "
            "series that it was drawn on"
        )
    return number


def is_outside(number: int, voxels: np.ndarray, scan: Volume) -> bool:
    """Return whether points `(n, 2)` of a slice lie more than half a voxel outside the scan, some or all."""
    beside = (voxels < -1).any() or (voxels > scan.shape[:2]).any()
    return bool(beside) or not 0 <= number < scan.shape[2]


def check_inside(mask: np.ndarray, outside: int, what: str, scan: Volume, path: Path) -> None:
    """Raise `ValueError` if a mask is empty, warn if some of what was drawn lies outside the scan.

    `what` follows the number, such as "of 9 contours of 'tumour'".
    """
    told = f"{outside} {what} lie outside {scan.name}, wholly or in part"
    if not mask.any():
        raise ValueError(
            f"{path}: no voxel of {scan.name} is inside the structure ({told}); give the series that it was "
            "drawn on, or leave this case out"
        )
    if outside:
        warnings.warn(f"{path}: {told}; check that it was drawn on this series", MaskWarning, stacklevel=2)


def check_reference(dataset: Any, rois: list[Any], scan: Volume, path: Path) -> None:
    """Raise `ValueError` if a mask has another frame of reference than its scan, warn if it names another series.

    What is unknown, as of a scan in NIfTI, is not compared.
    """
    frames = {get_text(roi, "ReferencedFrameOfReferenceUID") for roi in rois} - {""}
    frames = frames or {
        get_text(one, "FrameOfReferenceUID")
        for one in (dataset, *dataset.get("ReferencedFrameOfReferenceSequence", []))
    } - {""}
    if scan.frame_uid and frames - {scan.frame_uid}:
        raise ValueError(
            f"{path} was drawn in frame of reference {', '.join(sorted(frames))}, {scan.name} lies in "
            f"{scan.frame_uid}, so their places cannot be compared; give the series that it was drawn on"
        )
    series = referenced_series(dataset)
    if scan.series_uid and series and scan.series_uid not in series:
        warnings.warn(
            f"{path} refers to series {', '.join(sorted(series))}, {scan.name} is series {scan.series_uid}; "
            "check that the mask lies on its structure",
            MaskWarning,
            stacklevel=2,
        )
