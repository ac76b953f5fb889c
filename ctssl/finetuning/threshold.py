"""Whole validation scans: their DSC during a training, and the threshold that it ends with.

A network that is unsure of a border says 0.3 where three of ten such voxels are labelled, and its likeliest
class misses all of them. The highest expected Dice comes from a threshold of half of that Dice, which is
below 0.5 (Lipton, Elkan and Narayanaswamy 2014, arXiv 1402.1892). If a validation scan has an empty mask, Dice is pooled
over all scans, so that false positives count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from ctssl.finetuning.crops import PreparedCase
from ctssl.inference.masks import likeliest, probabilities_of
from ctssl.inference.windows import Windows
from ctssl.metrics import dsc
from ctssl.volume.volume import Volume

THRESHOLDS = (0.5, 0.4, 0.3, 0.2)  # the best threshold is half of the best Dice: for a Dice of 0.4 to 1
HIGHER = (0.6, 0.7, 0.8, 0.9)  # tried where some validation masks are empty: fewer false positives


def choose_threshold(net: Any, scans: list[PreparedCase], *, progress: bool = False) -> float:
    """Return the threshold with the highest mean DSC over whole scans and labels; 0.5 where nothing is labelled. If a
    scan has an empty mask, the DSC of each label is that over all scans together."""
    some_empty = any(not scan.labelled for scan in scans)
    thresholds = (*THRESHOLDS, *HIGHER) if some_empty else THRESHOLDS
    counts = np.zeros((len(thresholds), len(scans), net.classes, 3))  # voxels: both, marked, true
    for n, scan in enumerate(tqdm(scans, desc="choosing the threshold", disable=not progress or not scans)):
        for t, mask in enumerate(_masks(net, scan, thresholds, Windows()).values()):
            for k in net.labels:
                marked, true = mask == k, scan.labels == k
                counts[t, n, k] = (marked & true).sum(), marked.sum(), true.sum()
    if some_empty:
        counts = counts.sum(1, keepdims=True)
    both, marked, true = np.moveaxis(counts, -1, 0)
    there = true[0] > 0  # labels that a scan has
    if not there.any():
        return THRESHOLDS[0]
    means = (2 * both[:, there] / (marked + true)[:, there]).mean(1)
    return thresholds[int(means.argmax())]


def validate(net: Any, scans: list[PreparedCase], *, half: bool = False) -> float:
    """Return the mean DSC over whole scans at the working spacing, and over the labels that each has.

    `half`: in bfloat16. Windows do not overlap, for speed.
    """
    windows = Windows(overlap=0.0, bf16=half)
    labelled = (scan for scan in scans if scan.labelled)  # the others have no DSC
    scores = [_dsc(net, scan, _masks(net, scan, (0.5,), windows)[0.5]) for scan in labelled]
    means = [np.mean(one) for one in scores if one]
    return float(np.mean(means)) if means else 0.0


def _masks(
    net: Any, scan: PreparedCase, thresholds: tuple[float, ...], windows: Windows
) -> dict[float, np.ndarray]:
    """Return the mask of a whole scan at each threshold."""
    first, *others = scan.image.astype(np.float32)
    image = Volume(first, scan.affine, scan.name, extra=tuple(others))
    probabilities, _ = probabilities_of(net, image, windows)
    maps = [probabilities[k].astype(np.float32) for k in net.labels]
    return {threshold: likeliest(maps, list(net.labels), threshold) for threshold in thresholds}


def _dsc(net: Any, scan: PreparedCase, mask: np.ndarray) -> list[float]:
    """Return the DSC of each label that a scan has."""
    return [dsc(mask == k, scan.labels == k) for k in net.labels if (scan.labels == k).any()]
