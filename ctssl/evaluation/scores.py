"""Score one mask against another: a row per label."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.case import one_label
from ctssl.metrics import dsc, hd95, lesions, nsd
from ctssl.volume.grids import is_sheared, working_grid
from ctssl.volume.volume import Volume, corner_distance, read

WHITE = 255  # of masks from programs for images
METRICS = ("dsc", "hd95_mm", "nsd", "volume_error_ml")
RESERVED = {
    "case",
    "label",
    "patient",
    "model",
    "shift",
    "severity",
    "dsc",
    "nsd",
    "hd95_mm",
    "lesions",
    "lesions_found",
    "false_positives",
    "scan_mm",
    "change_hu",
    "working_mm",
    "working_change_hu",
    "width_mm",
    "volume_ml",
    "volume_error_ml",
    "best_dsc",
    "unchanged",
}


class MaskReader:
    """Read masks that belong together; one of 0 and 255 as one of 0 and 1, unless `names` has a label 255.

    Raises `ValueError` for a probability map, for negative labels, and where 255 stands for 1 in one mask and is a label beside
    others in another.
    """

    def __init__(self, names: Iterable[int] = ()) -> None:
        self.as_one = WHITE not in names
        self.alone: Path | None = None  # a file with 255 alone
        self.beside: Path | None = None  # a file with 255 beside other labels

    def __call__(self, path: Path) -> Volume:
        mask = read_mask(path, as_is=True)
        labels = labels_in(mask)
        if not self.as_one or WHITE not in labels:
            return mask
        if labels == {WHITE}:
            self.alone = path
            mask = replace(mask, array=(mask.array == WHITE).astype(np.float32))
        else:
            self.beside = path
        if self.alone and self.beside:
            raise ValueError(
                f"{self.alone} holds 255 alone, as if it stood for 1, and {self.beside} holds it beside other labels; name it "
                "(--names 255=...) if it is a label, or give it another number in all masks"
            )
        return mask


def read_mask(path: Path, *, as_is: bool = False) -> Volume:
    """Read a mask; unless `as_is`, one of 0 and 255 as one of 0 and 1. Raises `ValueError` for a probability map, and for
    negative labels."""
    mask = read(path)
    if (mask.array != np.round(mask.array)).any():
        raise ValueError(
            f"{path} holds fractions, so it is a probability map, not a mask; give masks of whole numbers"
        )
    if (mask.array < 0).any():
        raise ValueError(f"{path} holds the label {mask.array.min():g}; give labels from 0 (background)")
    array = mask.array if as_is else one_label(mask.array, np.unique(mask.array))
    return mask if array is mask.array else replace(mask, array=array.astype(np.float32))


def labels_of(*masks: Volume) -> list[int]:
    """Return the labels that occur in any of the masks; [1] if there is none."""
    return sorted(set().union(*map(labels_in, masks))) or [1]


def labels_in(mask: Volume) -> set[int]:
    """Return every label that occurs in a mask, without the background."""
    return {int(v) for v in np.unique(mask.array) if v > 0}


def check_same_grid(one: Volume, two: Volume, *, name: str) -> None:
    """Raise `ValueError` unless two masks have the same shape and affine; the message says how they differ.

    Args:
        one: the prediction.
        two: the truth.
        name: the case or file, for the message.
    """
    off = corner_distance(one, two) if one.shape == two.shape else math.inf
    if off <= 0.5 * min(two.spacing_mm):
        return
    if one.shape != two.shape:
        what = f"{' x '.join(map(str, one.shape))} and {' x '.join(map(str, two.shape))} voxels"
    else:
        axes_differ = not np.allclose(
            np.sign(np.round(one.affine[:3, :3], 3)), np.sign(np.round(two.affine[:3, :3], 3))
        )
        how = "have other axis directions" if axes_differ else "differ"
        what = f"their affines {how}, corners are up to {off:.1f} mm apart"
    raise ValueError(
        f"{name}: prediction and truth are on different grids ({what}); save the prediction on the "
        "scan's own grid"
    )


def score_masks(
    one: Volume, two: Volume, *, name: str, tolerance_mm: float | None, labels: list[int] | None = None
) -> list[dict[str, Any]]:
    """Score a predicted mask against the true one, a row per label.

    Args:
        one: the prediction.
        two: the truth.
        name: the case.
        tolerance_mm: tolerance of the NSD in mm. None: skip the distances (HD95 and NSD are NaN), which take
            most of the time.
        labels: labels to score. Default: those that occur in either mask, 1 if there is none.
    """
    one = one.with_axes_of(two)
    check_same_grid(one, two, name=name)
    straight = [unshear(one), unshear(two)] if tolerance_mm is not None else []
    rows = []
    for value in labels or labels_of(one, two):
        p, t = one.array == value, two.array == value
        hit, all_, false = lesions(p, t)
        far = near = math.nan
        if tolerance_mm is not None:
            far = hd95(p, t, spacing_mm=two.affine[:3, :3] if is_sheared(two.affine) else two.spacing_mm)
            both = [mask.array == value for mask in straight]
            if [mask.any() for mask in both] == [p.any(), t.any()]:  # else too thin for orthogonal axes
                near = nsd(*both, spacing_mm=straight[1].spacing_mm, tolerance_mm=tolerance_mm)
        rows.append(
            {
                "case": name,
                "label": value,
                "dsc": dsc(p, t),
                "hd95_mm": far,
                "nsd": near,
                "lesions_found": hit,
                "lesions": all_,
                "false_positives": false,
                "volume_ml": float(t.sum()) * two.voxel_ml,
                "volume_error_ml": (float(p.sum()) - float(t.sum())) * two.voxel_ml,
            }
        )
    return rows


def unshear(mask: Volume) -> Volume:
    """Return a mask on orthogonal axes, where areas can be measured along the axes: of each new voxel, the label of the
    nearest old one.

    A mask that is not sheared (gantry tilt) is returned unchanged.
    """
    if not is_sheared(mask.affine):
        return mask
    from scipy import ndimage

    back = np.linalg.inv(mask.affine)
    heights = 1 / np.linalg.norm(back[:3, :3], axis=1)  # of a voxel across its faces, in mm
    shape, affine = working_grid(mask, float(heights.min()))
    move: Any = back @ affine
    labels: Any = ndimage.affine_transform(
        mask.array, move, output_shape=shape, order=0, mode="grid-constant"
    )
    return replace(mask, array=labels, affine=affine)
