"""One labelled scan: where it lies, whose it is, and reading it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from ctssl.volume.channels import Channels
from ctssl.volume.volume import Volume, check_grid, read


@dataclass(frozen=True)
class Case:
    """One scan and its mask.

    Args:
        name: of the case, and of its results.
        image: NIfTI file, or the folder of a DICOM series.
        label: NIfTI file, or RTSTRUCT or SEG of a DICOM `series`.
        patient: the same for all scans of a person.
        split: `train`, `val`, `test` or "".
        facts: further columns of a table, for strata.
        series: SeriesInstanceUID.
        roi: structure to take from an RTSTRUCT or SEG, or that the mask is of.
        channels: further images on the grid of the scan, such as a PET.
    """

    name: str
    image: Path
    label: Path
    patient: str = ""
    split: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    series: str | None = None
    roi: str | None = None
    channels: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Dataset:
    """Labelled scans, names of their labels where the data says them, and of the channels beside the CT."""

    cases: list[Case]
    names: dict[int, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()

    def of_one_channel(self, what: str) -> list[Case]:
        """Return the cases. Raises `ValueError` where they have several channels. `what`: takes the CT alone."""
        if self.channels:
            raise ValueError(
                f"{what} takes the CT alone, and these cases have {1 + len(self.channels)} channels (CT, "
                f"{', '.join(self.channels)}); give the CTs in a folder of their own"
            )
        return self.cases


def read_case(case: Case) -> tuple[Volume, Volume]:
    """Read scan (HU, with its further channels) and mask (uint8) of a case, on one grid. A mask of 0 and 255 is one of 0 and 1.

    Raises `ValueError` where they do not fit, and for a mask that holds other values than 0 to 255.
    """
    source = Channels(case.image, *case.channels) if case.channels else case.image
    scan = read(source, series=case.series)
    if case.series is not None:
        from ctssl.volume.dicom_masks import read_annotation

        return scan, read_annotation(case.label, scan, roi=case.roi)
    return scan, fit_mask(scan, read(case.label), case.name)


def fit_mask(scan: Volume, mask: Volume, name: str) -> Volume:
    """Return a mask as uint8 on the grid of its scan, also one with other axis directions. A mask of 0 and 255 is one of 0 and 1.

    Raises `ValueError` where they do not fit, and for a mask that holds other values than 0 to 255.
    """
    mask = mask.with_axes_of(scan)
    check_grid(replace(scan, name=name), mask, "its mask", "resample the mask to the grid of the scan")
    values = np.unique(mask.array)
    if (
        not np.isfinite(values).all()
        or (values < 0).any()
        or (values != np.round(values)).any()
        or values.max() > 255
    ):
        raise ValueError(f"{name}: a mask holds whole numbers 0..255, this one has {values[:6]}")
    labels = one_label(mask.array, values).astype(np.uint8)
    return replace(mask, array=labels, affine=scan.affine)


def one_label(labels: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return a mask that holds 0 and 255 (`values`), as programs for images write it, with 1 for 255; any
    other one unchanged.
    """
    return labels == 255 if set(values.tolist()) - {0} == {255} else labels
