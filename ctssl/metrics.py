"""How well a mask agrees with the truth."""

import numpy as np


def dsc(predicted: np.ndarray, truth: np.ndarray) -> float:
    """Dice similarity coefficient of two bool masks of one shape, 2|A and B| / (|A| + |B|), from 0 to 1.

    Two empty masks agree: 1. One empty mask: 0.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"masks of different shapes, {predicted.shape} and {truth.shape}: bring them to one grid first"
        )
    predicted, truth = predicted.astype(bool), truth.astype(bool)
    total = int(predicted.sum()) + int(truth.sum())
    return 1.0 if total == 0 else 2.0 * int((predicted & truth).sum()) / total
