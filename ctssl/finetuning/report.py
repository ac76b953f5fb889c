"""What comes out of a fine-tuning, and the files that it leaves beside the weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Report:
    """What came out: the folder of the segmenter, the DSC of every held-out case for every label, and how it
    got there.

    `curve`: step, loss and (with validation cases) their DSC at each evaluation; `validated`: the patients'
    cases that chose the weights; `warnings`: what is doubtful about the cases.
    """

    folder: Path
    held_out: dict[str, dict[str, float]]
    train: list[str]
    validated: list[str]
    curve: list[dict[str, float]]
    seconds: float
    warnings: list[str] = field(default_factory=list)

    @property
    def mean_dsc(self) -> float:
        """Mean over held-out cases of each case's mean over labels; NaN when none was held out."""
        return (
            float(np.mean([np.mean(list(case.values())) for case in self.held_out.values()]))
            if self.held_out
            else math.nan
        )
