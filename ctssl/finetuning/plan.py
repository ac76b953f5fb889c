"""Choose spacing, HU window, crop and batch from the labelled structures.

After nnU-Net's planning (Isensee et al. 2021, arXiv 1809.10486), with rules of our own for spacing and crop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ctssl.metrics import components
from ctssl.volume.volume import Volume
from ctssl.zoo import Channel, Preprocess

SAMPLED = 2000  # voxels of each label in a case
NARROWEST_HU = 200.0
COARSER = 2.0  # times the encoder's own spacing: crops then show what is around a large tumour, in less time
FEW_LABELS = 3  # up to which the smallest structure decides, as a tumour in an organ has to
STRIDE, SMALLEST_CROP = 16, 32  # voxels: what a crop is a multiple of, and its least


@dataclass(frozen=True)
class Structures:
    """The labelled structures of one case, or what cases have in common.

    `diameters_mm`: by label, of a ball as large as the largest piece. `hu`: by label, of some of its voxels.
    `finest_mm`: the scan's finest spacing. `extent_mm`: the scan's shortest side. `longest_mm`: its longest side.
    `volumes_ml`: by label, of all of it. `others`: of each channel beside the CT, some values of labelled voxels.
    """

    diameters_mm: dict[int, float]
    hu: dict[int, np.ndarray]
    finest_mm: float
    extent_mm: float
    longest_mm: float = 0.0
    volumes_ml: dict[int, float] = field(default_factory=dict)
    others: tuple[np.ndarray, ...] = ()

    @property
    def diameter_mm(self) -> float:
        """Diameter that decides: of up to three labels the smallest, of more the lower quartile, so that one
        small structure of many does not decide alone; 0 without any label."""
        sizes = list(self.diameters_mm.values())
        if not sizes:
            return 0.0
        return min(sizes) if len(sizes) <= FEW_LABELS else float(np.quantile(sizes, 0.25))


@dataclass(frozen=True)
class Plan:
    """`preprocess`: spacing and window; `crop`: voxels along each side; `batch`: crops per step and device."""

    preprocess: Preprocess
    crop: int
    batch: int


def measure(scan: Volume, mask: Volume) -> Structures:
    """Measure the labelled structures of one case."""
    diameters, hu, volumes = {}, {}, {}
    for label in map(int, np.unique(mask.array[mask.array > 0])):
        of_label = mask.array == label
        counts = np.bincount(components(of_label)[0].ravel())[1:]
        diameters[label] = 2 * (3 * 1000 * counts.max() * mask.voxel_ml / (4 * np.pi)) ** (1 / 3)
        volumes[label] = float(counts.sum() * mask.voxel_ml)
        hu[label] = _sampled(scan.array[of_label])
    others = tuple(_sampled(channel[mask.array > 0]) for channel in scan.extra)
    sides = [n * s for n, s in zip(scan.shape, scan.spacing_mm, strict=True)]
    return Structures(diameters, hu, min(scan.spacing_mm), min(sides), max(sides), volumes, others)


def _sampled(values: np.ndarray) -> np.ndarray:
    """Return at most `SAMPLED` of some values, evenly."""
    return values[np.linspace(0, len(values) - 1, min(len(values), SAMPLED)).astype(int)]


def pool(cases: list[Structures]) -> Structures:
    """Pool the measurements of cases: median sizes by label, all sampled HU."""
    labels = sorted({label for case in cases for label in case.diameters_mm})
    return Structures(
        {k: float(np.median([c.diameters_mm[k] for c in cases if k in c.diameters_mm])) for k in labels},
        {k: np.concatenate([c.hu[k] for c in cases if k in c.hu]) for k in labels},
        float(np.median([case.finest_mm for case in cases])),
        float(np.median([case.extent_mm for case in cases])),
        others=tuple(np.concatenate(values) for values in zip(*(case.others for case in cases), strict=True)),
    )


def training_range(cases: list[Structures], labels: dict[int, str]) -> dict[str, Any]:
    """Return the longest side of the training scans in mm, and the smallest and the largest volume of each label in ml,
    for `ctssl.inference.ranges`."""
    volumes = {
        str(k): [
            round(float(f([c.volumes_ml[k] for c in cases if k in c.volumes_ml])), 3) for f in (min, max)
        ]
        for k in labels
        if any(k in c.volumes_ml for c in cases)
    }
    return {"longest_mm": round(max((c.longest_mm for c in cases), default=0.0), 1), "volume_ml": volumes}


def make_plan(
    cases: list[Structures],
    own: Preprocess,
    *,
    spacing_mm: float | None = None,
    window_hu: tuple[float, float] | None = None,
    crop: int = 0,
    batch: int = 0,
    channels: tuple[str, ...] = (),
    channel_windows: list[tuple[float, float]] | None = None,
) -> Plan:
    """Plan a fine-tuning: what is given, and the rest derived from the labelled structures.

    Args:
        cases: of the training cases.
        own: what the encoder was trained on; taken where nothing is labelled.
        spacing_mm: working spacing in mm.
        window_hu: lower and upper HU.
        crop: voxels along each side of a crop; 0 derives it.
        batch: crops per step and device; 0 derives it from the crop.
        channels: names of the channels beside the CT.
        channel_windows: lower and upper value of each of them.
    """
    common = pool(cases)
    windows = channel_windows or [derive_channel(values) for values in common.others]
    preprocess = Preprocess(
        spacing_mm or derive_spacing(common, own.spacing_mm),
        window_hu or derive_window(common, own.window_hu),
        tuple(Channel(name, *window) for name, window in zip(channels, windows, strict=True)),
    )
    crop = crop or derive_crop(common, preprocess.spacing_mm)
    return Plan(preprocess, crop, batch or min(32, max(1, round(4 * (64 / crop) ** 2))))


def derive_spacing(common: Structures, own: float) -> float:
    """Return a tenth of the structures' diameter in mm, not finer than the scans, and at most `COARSER` times the
    encoder's `own` spacing; `own` where nothing is labelled."""
    if not common.diameter_mm:
        return own
    return round(min(COARSER * own, max(common.diameter_mm / 10, common.finest_mm)), 2)


def derive_window(common: Structures, otherwise: tuple[float, float]) -> tuple[float, float]:
    """Return the window in HU: the range of 99% of the labelled voxels, widened by a quarter on either side for what is
    around them; at least 200 HU wide.

    Of more than three labels the quartiles of their ranges decide, so that one bony label of seven does not
    stretch the window. `otherwise`: where nothing is labelled.
    """
    if not common.hu:
        return otherwise
    if len(common.hu) <= FEW_LABELS:
        low, high = np.percentile(np.concatenate(list(common.hu.values())), (0.5, 99.5))
    else:
        ranges = np.array([np.percentile(values, (0.5, 99.5)) for values in common.hu.values()])
        low, high = np.quantile(ranges[:, 0], 0.25), np.quantile(ranges[:, 1], 0.75)
    margin = max((high - low) / 4, (NARROWEST_HU - (high - low)) / 2)
    return max(-1020.0, 10.0 * round((low - margin) / 10)), 10.0 * round((high + margin) / 10)


def derive_channel(values: np.ndarray) -> tuple[float, float]:
    """Return the window of a channel beside the CT, in its own units: the range of 99% of the labelled voxels, widened
    by a quarter on either side."""
    low, high = np.percentile(values, (0.5, 99.5)) if len(values) else (0.0, 1.0)
    margin = (high - low) / 4 or max(abs(high), 1.0) / 4  # of one value everywhere too
    digits = 3 - math.floor(math.log10(high - low + 2 * margin))
    return round(float(low - margin), digits), round(float(high + margin), digits)


def derive_crop(common: Structures, spacing_mm: float) -> int:
    """Return the voxels along each side of a crop: 64, or 96 for large structures, which need more around
    them; not more than the scans have."""
    wanted = 96 if common.diameter_mm / spacing_mm > 32 else 64
    room = int(common.extent_mm / spacing_mm) // STRIDE * STRIDE
    return min(wanted, max(SMALLEST_CROP, room))
