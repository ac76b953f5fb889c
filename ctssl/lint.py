"""What is wrong with this scan, in words. Errors are impossible for a CT in HU, warnings are worth a look."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np

from ctssl.volume.volume import Volume


class ScanWarning(UserWarning):
    """A scan that may not be what a model expects."""


@dataclass(frozen=True)
class Finding:
    """`level` is "error" or "warning"; `code` is a stable short name; `message` says what to do."""

    level: str
    code: str
    message: str


def lint(volume: Volume) -> list[Finding]:
    """Everything doubtful about a scan; empty for a CT in HU with a plausible geometry."""
    return _geometry(volume) + _intensities(volume)


def check(volume: Volume) -> Volume:
    """The scan; raises `ValueError` for errors of `lint`, warns (`ScanWarning`) of the rest."""
    findings = lint(volume)
    errors = [finding.message for finding in findings if finding.level == "error"]
    if errors:
        raise ValueError(f"{volume.name}: {'; '.join(errors)}")
    for finding in findings:
        warnings.warn(f"{volume.name}: {finding.message}", ScanWarning, stacklevel=3)
    return volume


def outside_body(scan: Volume, mask: Volume) -> bool:
    """Whether every labelled voxel lies in the air around the body: a mask of somebody else, or a shifted
    one.

    Air inside the body (lungs, airways, bowel) is part of it: each axial slice is filled.
    """
    labelled = mask.array > 0
    if not labelled.any() or float(np.median(scan.array[labelled])) > -800:
        return False  # most masks; what follows is slow
    from scipy import ndimage

    axial = int(np.abs(scan.affine[2, :3]).argmax())
    steps = [max(1, n // 256) if axis != axial else 1 for axis, n in enumerate(scan.shape)]
    part = tuple(slice(None, None, step) for step in steps)
    tissue, marked = (np.moveaxis(a[part], axial, 0) for a in (scan.array > -500, labelled))
    for slice_, here in zip(tissue, marked, strict=True):
        if here.any() and (ndimage.binary_fill_holes(slice_) & here).any():  # type: ignore[operator]
            return False
    return bool(marked.any())


def _geometry(volume: Volume) -> list[Finding]:
    found, spacing = [], volume.spacing_mm
    extent = [n * s for n, s in zip(volume.shape, spacing, strict=True)]
    codes = (
        [int(volume.header[key]) for key in ("sform_code", "qform_code")]
        if volume.header is not None
        else [1]
    )
    if not any(codes):
        found.append(
            Finding(
                "warning",
                "no-geometry",
                "the file does not say where its voxels lie (sform and qform are 0), so "
                "orientation, left and right are guessed; export the scan again with its geometry",
            )
        )
    elif np.allclose(volume.affine, np.eye(4)):  # ITK's, diag(-1, -1, 1), is that of honest crops at 1 mm too
        found.append(
            Finding(
                "warning",
                "identity-affine",
                "the affine is the identity, so spacing and orientation were "
                "probably lost on the way; export the scan again with its geometry",
            )
        )
    if min(spacing) < 0.02 or max(spacing) > 50:
        text = " x ".join(f"{s:g}" for s in spacing)
        found.append(
            Finding(
                "error",
                "spacing",
                f"a spacing of {text} mm is impossible for CT; the affine must be in millimetres",
            )
        )
    elif min(spacing) < 0.15 or max(spacing) > 12 or max(extent) > 2500 or max(extent) < 15:
        text, size = (" x ".join(f"{s:.4g}" for s in values) for values in (spacing, extent))
        found.append(
            Finding(
                "warning",
                "spacing",
                f"spacing {text} mm, size {size} mm: unusual for CT; check that the affine is in millimetres",
            )
        )
    return found


def _intensities(volume: Volume) -> list[Finding]:
    step = max(1, round((volume.array.size / 4e6) ** (1 / 3)))
    values = volume.array[::step, ::step, ::step]
    low, high = float(volume.array.min()), float(volume.array.max())

    def error(code: str, message: str) -> list[Finding]:
        return [Finding("error", code, message)]

    if low == high:
        return error("constant", f"every voxel is {low:g}; there is no scan in it")
    if low >= 0 and high <= 255 and len(few := np.unique(values)) <= 16 and (few == np.round(few)).all():
        return error(
            "mask",
            f"its values are {', '.join(f'{v:g}' for v in few[:5])}{' ...' if len(few) > 5 else ''}: this looks "
            "like a mask; give the scan that it belongs to, in HU",
        )
    if low >= -0.01 and high <= 1.01:
        return error(
            "windowed",
            f"values lie in {low:.2g}..{high:.2g}: the scan was already windowed to 0..1; give it in HU",
        )
    if low >= -1.01 and high <= 1.01:
        return error(
            "windowed", f"values lie in {low:.2g}..{high:.2g}: the scan was already normalised; give it in HU"
        )
    if low >= 0 and high <= 255:
        return error(
            "windowed", "values lie in 0..255: this is a picture of a window, not HU; give the scan in HU"
        )
    if low < -5000 or high > 100_000:
        low, high = float(np.percentile(values, 1)), float(np.percentile(values, 99))
        if low < -5000 or high > 32_000:
            return error("not-ct", f"99 % of the values lie in {low:.0f}..{high:.0f}, far outside HU")
    air = float((values < -800).mean())
    if low >= 0:
        dark = float((values < 200).mean())
        water = float(((values > 850) & (values < 1250)).mean())
        if dark > 0.02 and water > 0.05:
            return error(
                "rescale-missing",
                "the lowest value is 0 and tissue lies near 1024: RescaleIntercept was not "
                "applied; add it (usually -1024)",
            )
        return [Finding("warning", "not-ct", "no value is negative, as fat and air are in HU; is this a CT?")]
    scanned = (
        values[values > low] if low < -1500 else values
    )  # corners of the field of view hold one value, such as -3024
    floor = np.percentile(scanned, 0.5) if scanned.size else low
    if (
        air > 0.02
        and floor < -1500
        and ((values > -1250) & (values < -850)).mean() > 0.05 > (values > -850).mean()
    ):
        return error(
            "rescaled-twice", "nothing is denser than -850: RescaleIntercept was applied twice; add 1024"
        )
    if floor < -1800 and ((values > -1300) & (values < -800)).mean() > 2 * (np.abs(values) < 300).mean():
        return error(
            "rescaled-twice",
            "air lies near -2048 and tissue near -1024: RescaleIntercept was applied twice; add 1024",
        )
    if low >= -150:
        return [
            Finding(
                "warning",
                "not-ct",
                f"the lowest value is {low:.0f}, no fat or air in sight; is this a CT in HU?",
            )
        ]
    return []
