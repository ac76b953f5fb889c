"""Order the slices of a DICOM series. Refuse those that do not form one regular grid of one patient."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ctssl.volume.dicom_file import check_one_image, get_numbers, get_text, open_dicom


def order_slices(
    files: list[Path], folder: Path, headers: list[Any] | None = None
) -> tuple[list[Any], np.ndarray]:
    """Open the slices of a series in order along their normal; `headers`: take these instead, which hold no pixels.

    Returns:
        The datasets, and the line that their positions lie on: `(2, 3)`, position of the first slice and step
        to the next one, in DICOM (LPS) mm.

    Raises:
        ValueError: the slices do not form one regular grid of one patient.
    """
    slices = headers or [open_dicom(file) for file in files]
    _check_series(slices, files, folder)
    normal = np.cross(*get_axes(slices[0], files[0]))
    places = np.array(
        [get_numbers(s, "ImagePositionPatient", 3, file) for s, file in zip(slices, files, strict=True)]
    )
    order = np.argsort(places @ normal)
    slices, places = [slices[i] for i in order], places[order]
    _check_gaps(np.diff(places @ normal), folder)
    return slices, _fit_line(places, normal, folder)


def get_axes(image: Any, file: Path) -> np.ndarray:
    """Return the directions of a row and of a column `(2, 3)`: perpendicular unit vectors in LPS."""
    cosines = get_numbers(image, "ImageOrientationPatient", 6, file)
    axes = np.array(cosines).reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > 0.01:
        raise ValueError(
            f"{file}: invalid ImageOrientationPatient {cosines} (needs two perpendicular unit vectors); "
            "download it again"
        )
    return axes


def get_pixel_spacing(image: Any, file: Path) -> tuple[float, ...]:
    """Return the distances in mm between rows and between columns."""
    spacing = get_numbers(image, "PixelSpacing", 2, file)
    if min(spacing) <= 0:
        raise ValueError(f"{file}: invalid PixelSpacing {spacing} (must be > 0); download it again")
    return spacing


def _check_series(slices: list[Any], files: list[Path], folder: Path) -> None:
    """Raise `ValueError` unless the images are one CT series of one patient in one plane and scale."""
    for s, file in zip(slices, files, strict=True):
        if get_text(s, "Modality", "CT") != "CT":
            raise ValueError(f"{folder} holds {get_text(s, 'Modality')}, not CT ({file.name})")
    if len(slices) < 2:
        raise ValueError(
            f"{folder} holds only one image of this series; add the others (for enhanced multi-frame DICOM, "
            "convert it with dcm2niix)"
        )
    for key in ("PatientID", "FrameOfReferenceUID"):
        values = sorted({get_text(s, key) for s in slices})
        if len(values) > 1:
            raise ValueError(
                f"{folder}: the slices of this series have {len(values)} values of {key} "
                f"({', '.join(map(repr, values[:3]))}); use one folder per patient and frame of reference"
            )
    for key in ("RescaleSlope", "RescaleIntercept"):
        without = [file.name for s, file in zip(slices, files, strict=True) if not get_text(s, key)]
        if 0 < len(without) < len(slices):
            raise ValueError(
                f"{folder}: {key} is missing in {len(without)} of {len(slices)} slices (first {without[0]}), "
                "so their HU are unknown; export the series again"
            )
    for key in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"):
        if any(key not in s for s in slices):
            raise ValueError(
                f"{folder}: {key} is missing, so the geometry is unknown; export the series again"
            )
    if len({_plane(s, file, len(files)) for s, file in zip(slices, files, strict=True)}) > 1:
        raise ValueError(
            f"{folder}: slices of this series differ in size, spacing or orientation; move the odd ones "
            "(such as a localiser) to another folder"
        )


def _plane(image: Any, file: Path, images: int) -> tuple[Any, ...]:
    """Return what all images of a series must share: size, spacing and orientation."""
    return (
        *check_one_image(image, file, images=images),
        get_pixel_spacing(image, file),
        tuple(np.round(get_axes(image, file).ravel(), 4)),
    )


def _check_gaps(gaps: np.ndarray, folder: Path) -> None:
    """Raise `ValueError` if the distances between neighbouring slices tell of doubled or missing ones."""
    gap = float(np.median(gaps))
    if (gaps < 0.01).any():
        raise ValueError(
            f"{folder}: two images lie at the same place; split the series into one folder per phase"
        )
    if (np.abs(gaps - gap) > max(0.1 * gap, 0.02)).any():
        where = int(np.abs(gaps - gap).argmax())
        raise ValueError(
            f"{folder}: slices are missing: the spacing is {gap:.3g} mm, but {gaps[where]:.3g} mm after "
            f"slice {where + 1} of {len(gaps) + 1}; download the whole series"
        )


def _fit_line(places: np.ndarray, normal: np.ndarray, folder: Path) -> np.ndarray:
    """Return start and step of the straight line through equally distant positions, by least squares.

    The line may be oblique to the normal (gantry tilt). Raises `ValueError` if a position lies beside it.
    """
    count = len(places)
    moved = places - places[0]
    index = np.arange(count) - (count - 1) / 2
    step = index @ moved / (index @ index)
    aside = np.linalg.norm(moved - moved.mean(0) - index[:, None] * step, axis=1)
    along = float(step @ normal)
    limit = max(0.1 * along, 0.1)  # positions are often rounded to 0.1 mm
    if aside.max() > limit:
        raise ValueError(
            f"{folder}: slice {int(aside.argmax()) + 1} of {count} lies {aside.max():.3g} mm beside the line "
            f"of equally distant slices (at most {limit:.3g}); the series holds several reconstructions, or "
            "its slice distance changes: use one folder per reconstruction, or resample it to even distances"
        )
    across = float(np.linalg.norm(step - along * normal))
    if across > along:  # 45 degrees; a gantry tilts by up to 30
        raise ValueError(
            f"{folder}: the slices shift by {across:.3g} mm across per {along:.3g} mm along the normal, more "
            "than any gantry tilts; use one folder per reconstruction, or export the series again"
        )
    return np.stack([places[0] + moved.mean(0) + index[0] * step, step])
