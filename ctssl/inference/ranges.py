"""Warn where a scan, or the mask that a model made of it, is unlike everything the model was trained on."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from ctssl.scan_checks import ScanWarning
from ctssl.volume.volume import Volume

LONGER, LARGER = 1.5, 3.0  # times the longest training scan, and the largest training volume of a label


def warn_unlike_training(model: Any, mask: Volume) -> None:
    """Warn (`ScanWarning`) about a mask whose scan is much longer, or whose labels are much larger, than in training.

    Args:
        model: a segmenter. Its `training_range` has `longest_mm`, the longest side of its training scans, and
            `volume_ml`, by label the smallest and the largest volume; one without it is taken as it is.
        mask: on the grid of the scan.
    """
    for message in unlike_training(getattr(model, "training_range", None) or {}, model.labels, mask):
        warnings.warn(f"{mask.name}: {message}", ScanWarning, stacklevel=5)


def unlike_training(known: dict[str, Any], labels: dict[int, str], mask: Volume) -> list[str]:
    """Return the warnings about a mask; see `warn_unlike_training`."""
    messages = []
    longest = max(n * s for n, s in zip(mask.shape, mask.spacing_mm, strict=True))
    if longest > LONGER * known.get("longest_mm", np.inf):
        messages.append(
            f"the scan is {longest:.0f} mm long, the model was trained on scans of at most {known['longest_mm']:.0f} mm: "
            "it may mark organs that it has never seen; crop the scan around the lesion"
        )
    for key, (_, most) in known.get("volume_ml", {}).items():
        volume = float((mask.array == int(key)).sum()) * mask.voxel_ml
        if volume > LARGER * most:
            messages.append(
                f"{volume:.0f} ml of {labels.get(int(key), key)}, but at most {most:.0f} ml in the training cases: do not "
                "trust this mask"
            )
    return messages
