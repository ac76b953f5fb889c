"""A model's features on the phantom, stored in `config.json`, so that a change of the code is noticed."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ctssl.phantom import phantom
from ctssl.sampling import crop_at

SIDE = 96  # side in voxels of the central crop of the phantom


@torch.inference_mode()
def fingerprint(encoder: Any) -> list[dict[str, Any]]:
    """Return for each map its mean, standard deviation, and 16 values at fixed places."""
    image = encoder.preprocess(phantom()[0])[0, 0].numpy()
    start = tuple((n - SIDE) // 2 for n in image.shape)
    crop = torch.from_numpy(np.ascontiguousarray(crop_at(image, start, SIDE)))[None, None]
    rows = []
    for features in encoder(crop):
        values = features[0].float().flatten()
        places = np.random.default_rng(0).integers(0, values.numel(), 16)
        chosen = [round(float(values[int(i)]), 6) for i in places]
        rows.append(
            {
                "mean": round(float(values.mean()), 6),
                "deviation": round(float(values.std()), 6),
                "voxels": chosen,
            }
        )
    return rows


def deviation(expected: list[dict[str, Any]], actual: list[dict[str, Any]]) -> float:
    """Return the largest difference of two fingerprints, relative to the deviation of the map."""
    if len(expected) != len(actual):
        return float("inf")
    worst = 0.0
    for a, b in zip(expected, actual, strict=True):
        pairs = [
            (a["mean"], b["mean"]),
            (a["deviation"], b["deviation"]),
            *zip(a["voxels"], b["voxels"], strict=True),
        ]
        worst = max(worst, *(abs(x - y) / a["deviation"] for x, y in pairs))
    return worst
