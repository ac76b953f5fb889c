"""Check whether a scan is a CT in HU with a usable geometry.

Errors are impossible for a CT, warnings are suspicious.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ctssl.volume.volume import Volume
from ctssl.zoo import Preprocess

UNIT = 20.0  # times as large or small: another unit, as Bq/ml instead of SUV


class ScanWarning(UserWarning):
    """A scan that may not be what a model expects."""


@dataclass(frozen=True)
class Finding:
    """One problem of a scan: `level` ("error" or "warning"), `code` (a stable short name), `message` (what to
    do).
    """

    level: str
    code: str
    message: str


def lint(volume: Volume) -> list[Finding]:
    """Return every problem of a scan; empty for a CT in HU with a plausible geometry.

    >>> [finding.code for finding in lint(Volume(np.zeros((40, 40, 40), np.float32), np.eye(4)))]
    ['identity-affine', 'constant']
    """
    return _geometry(volume) + _intensities(volume)


def check(volume: Volume) -> Volume:
    """Return the scan. Raises `ValueError` for errors of `lint` and warns (`ScanWarning`) about the rest."""
    findings = lint(volume)
    errors = [finding.message for finding in findings if finding.level == "error"]
    if errors:
        raise ValueError(f"{volume.name}: {'; '.join(errors)}")
    for finding in findings:
        warnings.warn(f"{volume.name}: {finding.message}", ScanWarning, stacklevel=3)
    return volume


def level_of(channel: np.ndarray) -> float:
    """Return how far the values of a channel beside the CT reach: the size that one in a thousand voxels has."""
    return float(np.percentile(np.abs(channel[::2, ::2, ::2]), 99.9))


def check_channels(volume: Volume, preprocess: Preprocess) -> Volume:
    """Return the scan. Warns (`ScanWarning`) of a channel beside the CT whose values are far from those that the model knows, as
    in another unit."""
    for array, (name, low, high) in zip(volume.extra, preprocess.channels, strict=False):
        level, known = level_of(array), max(abs(low), abs(high))
        if level > UNIT * known or level < known / UNIT:
            text = (
                f"{volume.name}: the channel {name} has values up to {level:.3g}, the model knows {low:g} to {high:g}; give it "
                "in the unit of the scans that the model was trained on"
            )
            warnings.warn(text, ScanWarning, stacklevel=3)
    return volume


def outside_body(scan: Volume, mask: Volume) -> bool:
    """Return whether a mask is mostly air, and lies mostly in air that no tissue encloses: a shifted mask, or one
    of another scan.
    """
    labelled = mask.array > 0
    if not labelled.any() or float(np.median(scan.array[labelled])) > -800:
        return False  # the usual case; the exact test is slow
    return share_outside(scan, labelled, air_hu=-500.0) > 0.5


def share_outside(scan: Volume, labelled: np.ndarray, *, air_hu: float) -> float:
    """Return the share of labelled voxels that lie in open air, from 0 to 1.

    Air inside the body (lungs, airways, bowel) counts as body: each axial slice is filled.
    """
    from scipy import ndimage

    axial = int(np.abs(scan.affine[2, :3]).argmax())
    steps = [max(1, n // 256) if axis != axial else 1 for axis, n in enumerate(scan.shape)]
    part = tuple(slice(None, None, step) for step in steps)
    tissue, marked = (np.moveaxis(a[part], axial, 0) for a in (scan.array > air_hu, labelled))
    outside = 0
    for slice_, here in zip(tissue, marked, strict=True):
        if (here & ~slice_).any():
            outside += int((here & ~ndimage.binary_fill_holes(slice_)).sum())  # type: ignore[operator]
    return outside / max(1, int(marked.sum()))


def two_geometries(volume: Volume) -> list[Finding]:
    """Return a finding where sform and qform of a NIfTI file disagree by more than half a voxel."""
    from ctssl.volume.nifti import forms_apart

    apart = 0.0 if volume.header is None else forms_apart(volume.header)
    if apart <= 0.5 * min(volume.spacing_mm):
        return []
    how = f"sform and qform lie up to {apart:.1f} mm apart" if np.isfinite(apart) else "the qform is invalid"
    text = (
        f"{how}; ctssl uses the sform, and writes it as both into its masks. Programs that use the qform show "
        "them in another place: find out which is right, and export the file again with that one as both"
    )
    return [Finding("warning", "two-geometries", text)]


def _geometry(volume: Volume) -> list[Finding]:
    findings, spacing = two_geometries(volume), volume.spacing_mm
    extent = [n * s for n, s in zip(volume.shape, spacing, strict=True)]
    codes = (
        [int(volume.header[key]) for key in ("sform_code", "qform_code")]
        if volume.header is not None
        else [1]
    )
    if not any(codes):
        findings.append(
            Finding(
                "warning",
                "no-geometry",
                "the file has no geometry (sform and qform codes are 0), so orientation and left/right "
                "are guessed; export the scan again with its geometry",
            )
        )
    elif np.allclose(
        volume.affine, np.eye(4)
    ):  # not diag(-1, -1, 1), ITK's: genuine crops at 1 mm have it too
        findings.append(
            Finding(
                "warning",
                "identity-affine",
                "the affine is the identity, so spacing and orientation were "
                "probably lost; export the scan again with its geometry",
            )
        )
    if min(spacing) < 0.02 or max(spacing) > 50:
        text = " x ".join(f"{s:g}" for s in spacing)
        findings.append(
            Finding(
                "error",
                "spacing",
                f"spacing {text} mm is impossible for CT; the affine must be in millimetres",
            )
        )
    elif min(spacing) < 0.15 or max(spacing) > 12 or max(extent) > 2500 or max(extent) < 15:
        text, size = (" x ".join(f"{s:.4g}" for s in values) for values in (spacing, extent))
        findings.append(
            Finding(
                "warning",
                "spacing",
                f"spacing {text} mm and size {size} mm are unusual for CT; check that the affine is in "
                "millimetres",
            )
        )
    return findings


def _intensities(volume: Volume) -> list[Finding]:
    """Return at most one finding: the first that explains the values."""
    step = max(1, round((volume.array.size / 4e6) ** (1 / 3)))
    values = volume.array[::step, ::step, ::step]
    low, high = float(volume.array.min()), float(volume.array.max())
    for explain in (_no_scan, _windowed, _far_outside, _never_negative, _rescaled_twice, _no_air):
        if finding := explain(values, low, high):
            return [finding]
    return []


def _no_scan(values: np.ndarray, low: float, high: float) -> Finding | None:
    """Return a finding for a constant, or a mask."""
    if low == high:
        return Finding("error", "constant", f"every voxel is {low:g}; give a scan in HU")
    few = np.unique(values) if low >= 0 and high <= 255 else np.zeros(99)
    if len(few) <= 16 and (few == np.round(few)).all():
        shown = ", ".join(f"{v:g}" for v in few[:5]) + (" ..." if len(few) > 5 else "")
        text = f"its values are {shown}: this looks like a mask; give the scan it belongs to, in HU"
        return Finding("error", "mask", text)
    return None


def _windowed(values: np.ndarray, low: float, high: float) -> Finding | None:
    """Return a finding for values that were mapped to 0..1, -1..1 or 0..255, or to a mean of 0 and a standard deviation
    of 1."""
    if low >= -0.01 and high <= 1.01:
        done = "the scan was already windowed to 0..1; give it in HU"
    elif low >= -1.01 and high <= 1.01:
        done = "the scan was already normalised; give it in HU"
    elif low >= 0 and high <= 255:
        return Finding(
            "error",
            "windowed",
            f"values range from {low:.3g} to {high:.3g}: this is a windowed image, not HU; give the scan in HU",
        )
    elif low > -30 and high < 30:
        done = "the scan was already standardised (z-score); give it in HU"
    else:
        return None
    return Finding("error", "windowed", f"values range from {low:.2g} to {high:.2g}: {done}")


def _far_outside(values: np.ndarray, low: float, high: float) -> Finding | None:
    if low >= -5000 and high <= 100_000:
        return None
    low, high = float(np.percentile(values, 1)), float(np.percentile(values, 99))
    if low >= -5000 and high <= 32_000:
        return None
    text = f"99 % of the values range from {low:.0f} to {high:.0f}, far outside HU; give a CT in HU"
    return Finding("error", "not-ct", text)


def _never_negative(values: np.ndarray, low: float, high: float) -> Finding | None:
    """Return a finding for a scan without negative values. CT without its intercept has air near 0 and most tissue
    within 200 of 1024, with little in between; an MR image spreads."""
    if low < 0:
        return None
    dense = values[values > 400]
    water = float(((dense > 850) & (dense < 1250)).mean()) if dense.size else 0.0
    if float((values < 200).mean()) > 0.02 and dense.size > 0.05 * values.size and water > 0.5:
        text = "the lowest value is 0 and tissue is near 1024: RescaleIntercept was not applied; add it (usually -1024)"
        return Finding("error", "rescale-missing", text)
    text = (
        "no value is negative, but fat and air are in HU: this does not look like CT; check the modality (MR? PET?) and "
        "that RescaleSlope and RescaleIntercept were applied"
    )
    return Finding("error", "not-ct", text)


def _rescaled_twice(values: np.ndarray, low: float, high: float) -> Finding | None:
    # outside the field of view: one value, such as -3024
    scanned = values[values > low] if low < -1500 else values
    floor = np.percentile(scanned, 0.5) if scanned.size else low
    near_air = ((values > -1250) & (values < -850)).mean()
    if (values < -800).mean() > 0.02 and floor < -1500 and near_air > 0.05 > (values > -850).mean():
        text = "almost nothing is above -850: RescaleIntercept was applied twice; add 1024"
    elif floor < -1800 and ((values > -1300) & (values < -800)).mean() > 2 * (np.abs(values) < 300).mean():
        text = "air is near -2048 and tissue near -1024: RescaleIntercept was applied twice; add 1024"
    else:
        return None
    return Finding("error", "rescaled-twice", text)


def _no_air(values: np.ndarray, low: float, high: float) -> Finding | None:
    if low < -150:
        return None
    text = f"the lowest value is {low:.0f}, so there is no fat or air; check that this is CT in HU"
    return Finding("warning", "not-ct", text)
