"""From which probability on a voxel counts as labelled, chosen by validation cases.

A network that is unsure of a border says 0.3 where three of ten such voxels are labelled, and its likeliest
class misses all of them. The highest expected Dice comes from a threshold of half of that Dice, which is
below 0.5 (Lipton, Elkan and Narayanaswamy 2014, arXiv 1402.1892).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tqdm import tqdm

from ctssl.datasets.case import Case, read_case
from ctssl.inference.features import prepared
from ctssl.inference.masks import likeliest, probabilities_of
from ctssl.metrics import dsc

THRESHOLDS = (0.5, 0.4, 0.3, 0.2)  # a Dice of 0.4 to 1 asks for these


def choose(net: Any, cases: list[Case], truths: list[np.ndarray], *, progress: bool = False) -> float:
    """The threshold with the highest mean DSC over whole scans, cases and labels; 0.5 without cases.

    `truths`: labels of each case on the model's own grid.
    """
    scores: dict[float, list[float]] = {threshold: [] for threshold in THRESHOLDS}
    bar = tqdm(cases, desc="choosing the threshold", disable=not progress or not cases)
    for case, truth in zip(bar, truths, strict=True):
        image = prepared(net.encoder, read_case(case)[0])
        found, _ = probabilities_of(net, image)
        maps = [found[k].astype(np.float32) for k in net.labels]
        there = [k for k in net.labels if (truth == k).any()]
        for threshold in THRESHOLDS:
            mask = likeliest(maps, list(net.labels), threshold)
            scores[threshold] += [dsc(mask == k, truth == k) for k in there]
    return (
        max(THRESHOLDS, key=lambda t: float(np.mean(scores[t]))) if scores[THRESHOLDS[0]] else THRESHOLDS[0]
    )
