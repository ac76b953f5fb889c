"""Whole validation scans: their DSC during a training, and the threshold that it ends with.

A network that is unsure of a border says 0.3 where three of ten such voxels are labelled, and its likeliest
class misses all of them. The highest expected Dice comes from a threshold of half of that Dice, which is
below 0.5 (Lipton, Elkan and Narayanaswamy 2014, arXiv 1402.1892).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ctssl.finetuning.crops import Scan
from ctssl.inference.masks import likeliest, probabilities_of
from ctssl.inference.windows import Windows
from ctssl.metrics import dsc
from ctssl.volume.volume import Volume

THRESHOLDS = (0.5, 0.4, 0.3, 0.2)  # a Dice of 0.4 to 1 asks for these


def choose_threshold(net: Any, scans: list[Scan], *, progress: bool = False) -> float:
    """Return the threshold with the highest mean DSC over whole scans and labels; 0.5 without scans."""
    scores: dict[float, list[float]] = {threshold: [] for threshold in THRESHOLDS}
    bar = tqdm(scans, desc="choosing the threshold", disable=not progress or not scans)
    for scan in bar:
        for threshold, found in _scores(net, scan, THRESHOLDS, Windows()).items():
            scores[threshold] += found
    return (
        max(THRESHOLDS, key=lambda t: float(np.mean(scores[t]))) if scores[THRESHOLDS[0]] else THRESHOLDS[0]
    )


def validate(net: Any, scans: list[Scan], *, half: bool = False) -> float:
    """Return the mean DSC over whole scans at the working spacing, and over the labels that each has.

    `half`: bfloat16 autocast. Windows do not overlap, for speed.
    """
    device = next(net.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        scores = [_scores(net, scan, (0.5,), Windows(overlap=0.0))[0.5] for scan in scans]
    means = [np.mean(one) for one in scores if one]
    return float(np.mean(means)) if means else 0.0


def _scores(
    net: Any, scan: Scan, thresholds: tuple[float, ...], windows: Windows
) -> dict[float, list[float]]:
    """DSC of each label that a scan has, at each threshold."""
    first, *others = scan.image.astype(np.float32)
    image = Volume(first, scan.affine, scan.name, extra=tuple(others))
    probabilities, _ = probabilities_of(net, image, windows)
    maps = [probabilities[k].astype(np.float32) for k in net.labels]
    there = [k for k in net.labels if (scan.labels == k).any()]
    masks = {threshold: likeliest(maps, list(net.labels), threshold) for threshold in thresholds}
    return {t: [dsc(mask == k, scan.labels == k) for k in there] for t, mask in masks.items()}
