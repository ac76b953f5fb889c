"""How a segmenter is to see scans, from the tumours that it is to find: spacing, HU window and crop
(nnU-Net's planning)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ctssl.volume.volume import Volume
from ctssl.zoo import Preprocess

LOOKED_AT = 2000  # voxels of each label in a case
NARROWEST_HU = 200.0
COARSER = 2.0  # than the encoder's own spacing: of large tumours a crop then shows the surroundings, in a fraction of the time


@dataclass(frozen=True)
class Tumours:
    """Of one case, or the median over cases. `diameters_mm`: for each label that of its largest piece, as a
    ball of its volume; `finest_mm`: the scan's finest spacing; `hu`: of labelled voxels, as many of each
    label and case."""

    diameters_mm: dict[int, float]
    finest_mm: float
    hu: np.ndarray

    @property
    def diameter_mm(self) -> float:
        """That of the label with the smallest pieces (a tumour, where its organ is labelled too); 0 without
        any label."""
        return min(self.diameters_mm.values(), default=0.0)


def measure(scan: Volume, mask: Volume) -> Tumours:
    """Look at one case."""
    diameters, some = {}, [np.zeros(0, scan.array.dtype)]
    for label in np.unique(mask.array[mask.array > 0]):
        of_label = mask.array == label
        counts = np.bincount(ndimage.label(of_label)[0].ravel())[1:]  # type: ignore[index]
        volume = counts.max() * abs(np.linalg.det(mask.affine[:3, :3]))
        diameters[int(label)] = 2 * (3 * volume / (4 * np.pi)) ** (1 / 3)
        inside = scan.array[of_label]
        some.append(inside[np.linspace(0, len(inside) - 1, min(len(inside), LOOKED_AT)).astype(int)])
    return Tumours(diameters, min(scan.spacing_mm), np.concatenate(some))


def together(cases: list[Tumours]) -> Tumours:
    """What the cases have in common."""
    labels = sorted({label for case in cases for label in case.diameters_mm})
    of_label = {k: [case.diameters_mm[k] for case in cases if k in case.diameters_mm] for k in labels}
    return Tumours(
        {k: float(np.median(found)) for k, found in of_label.items()},
        float(np.median([case.finest_mm for case in cases])),
        np.concatenate([case.hu for case in cases]),
    )


def plan(
    cases: list[Tumours],
    own: Preprocess,
    *,
    spacing_mm: float | None,
    window_hu: tuple[float, float] | None,
    crop: int,
) -> tuple[Preprocess, int]:
    """How scans are prepared, and the voxels along a crop: what is given (`crop` 0: nothing), the rest from
    the cases' tumours.

    `own`: what the encoder was trained on; the spacing is at most `COARSER` times its own, and its window is
    taken where nothing is labelled.
    """
    tumours = together(cases)
    found = Preprocess(
        spacing_mm or fitting_spacing(tumours, own.spacing_mm),
        window_hu or fitting_window(tumours, own.window_hu),
    )
    return found, crop or fitting_crop(tumours, found.spacing_mm)


def fitting_spacing(tumours: Tumours, own: float) -> float:
    """A tenth of the tumours' diameter in mm, not finer than the scans are, nor coarser than `COARSER` times
    the encoder's `own` spacing, which is taken where there is nothing."""
    if not tumours.diameter_mm:
        return own
    return round(min(COARSER * own, max(tumours.diameter_mm / 10, tumours.finest_mm)), 2)


def fitting_window(tumours: Tumours, otherwise: tuple[float, float]) -> tuple[float, float]:
    """HU from which to which contrast is kept: what 99% of the labelled voxels are (nnU-Net's rule for CT),
    and a quarter of that more on either side, for what is around them. At least 200 HU wide; `otherwise`
    where nothing is labelled."""
    if not len(tumours.hu):
        return otherwise
    low, high = np.percentile(tumours.hu, (0.5, 99.5))
    margin = max((high - low) / 4, (NARROWEST_HU - (high - low)) / 2)
    return max(-1020.0, 10.0 * round((low - margin) / 10)), 10.0 * round((high + margin) / 10)


def fitting_crop(tumours: Tumours, spacing_mm: float) -> int:
    """Voxels along a crop: large tumours need more around them."""
    return 96 if tumours.diameter_mm / spacing_mm > 32 else 64
