"""What is remembered of each case for a report on a dataset, and what all cases have in common."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ctssl.datasets.case import Case
from ctssl.datasets.contacts import Tile, cut_tile
from ctssl.scan_checks import share_outside
from ctssl.volume.volume import Volume

SHARES = tuple(round(0.05 * i, 2) for i in range(2, 20))
"""Axes of the ellipsoids that are drawn in the middle of a scan, as shares of its extent."""
OPEN_AIR_HU = -900.0  # lung is denser


@dataclass(frozen=True)
class Record:
    """One case.

    Attributes:
        name: of the case.
        shape: of the scan, in voxels.
        spacing_mm: along each axis.
        volumes_ml: by label.
        hu: by label, the 5th, 50th and 95th percentile.
        outside: share of the labelled voxels that lie outside the body.
        centre: label of the voxel in the middle of the scan.
        middle: by label, the DSC of the ellipsoid of each of `SHARES`.
        tile: the slice that shows most of the largest label.
    """

    name: str
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    volumes_ml: dict[int, float]
    hu: dict[int, tuple[float, float, float]]
    outside: float
    centre: int
    middle: dict[int, np.ndarray]
    tile: Tile

    @property
    def labels(self) -> list[int]:
        """Labels of the case, the largest first."""
        return sorted(self.volumes_ml, key=lambda k: -self.volumes_ml[k])


@dataclass(frozen=True)
class LabelSummary:
    """One label in all cases: which hold it and which do not, its volumes in ml, its median in HU, and the mean DSC
    of an ellipsoid in the middle whose axes are `share` of the extent of the scan, the best of `SHARES`."""

    label: int
    cases: list[str]
    missing: list[str]
    volumes_ml: list[float]
    hu: float
    share: float
    dsc: float


def record_case(case: Case, scan: Volume, mask: Volume) -> Record:
    """Measure a case, and cut the slice that is shown of it."""
    from scipy import ndimage

    volumes, hu, middle = {}, {}, {}
    for label, box in enumerate(ndimage.find_objects(mask.array), 1):
        if box is None:
            continue
        inside = mask.array[box] == label
        values = scan.array[box][inside]
        low, median, high = np.percentile(values[:: 1 + values.size // 100_000], [5, 50, 95])
        volumes[label], hu[label] = len(values) * scan.voxel_ml, (float(low), float(median), float(high))
        middle[label] = _middle_scores(inside, box, scan.shape)
    largest = sorted(volumes, key=lambda k: -volumes[k])
    return Record(
        case.name,
        scan.shape,
        scan.spacing_mm,
        volumes,
        hu,
        share_outside(scan, mask.array > 0, air_hu=OPEN_AIR_HU),
        int(mask.array[tuple(n // 2 for n in mask.shape)]),
        middle,
        cut_tile(scan, mask, largest),
    )


def summarise_labels(records: list[Record]) -> list[LabelSummary]:
    """Describe each label over all cases."""
    found = []
    for label in sorted({label for one in records for label in one.volumes_ml}):
        held = [one for one in records if label in one.volumes_ml]
        scores = np.mean([one.middle[label] for one in held], axis=0)
        best = int(scores.argmax())
        found.append(
            LabelSummary(
                label,
                [one.name for one in held],
                [one.name for one in records if label not in one.volumes_ml],
                sorted(one.volumes_ml[label] for one in held),
                float(np.median([one.hu[label][1] for one in held])),
                SHARES[best],
                float(scores[best]),
            )
        )
    return found


def window_of(records: list[Record]) -> tuple[float, float]:
    """Return a window in HU that shows soft tissue and most labels."""
    held = [hu for one in records for hu in one.hu.values()]
    low, _, high = np.median(held, axis=0) if held else (0.0, 0.0, 0.0)
    return min(-160.0, float(low) - 100), max(240.0, float(high) + 100)


def _middle_scores(inside: np.ndarray, box: tuple[slice, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Return the DSC of a label with the ellipsoid of each of `SHARES`; `inside` is the label in its `box`."""
    x, y, z = (_squares(n)[part] for n, part in zip(shape, box, strict=True))
    distances = np.sort((x[:, None, None] + y[:, None] + z)[inside])
    common = np.searchsorted(distances, np.square(SHARES), side="right")
    return 2 * common / (len(distances) + _ellipsoid_sizes(shape))


@lru_cache(maxsize=8)
def _ellipsoid_sizes(shape: tuple[int, ...]) -> np.ndarray:
    """Count the voxels of the ellipsoid of each of `SHARES`."""
    x, y, z = (np.sort(_squares(n)) for n in shape)
    plane = x[:, None] + y
    return np.array([np.searchsorted(z, share**2 - plane, side="right").sum() for share in SHARES])


def _squares(n: int) -> np.ndarray:
    """Return the squared distance of each voxel of an axis from its middle, 1 at the ends of the axis."""
    return np.square((np.arange(n) - (n - 1) / 2) / (n / 2))
