"""The summary of a cross-validation, saved beside its folds."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.files.atomic import write_whole
from ctssl.files.text import as_plain
from ctssl.finetuning.report import Report


def summarise(reports: list[Report]) -> dict[str, Any]:
    """Return the DSC of every fold, and over all held-out cases together: by label with their number."""
    everyone = {name: case for report in reports for name, case in report.held_out.items()}
    labels = dict.fromkeys(label for case in everyone.values() for label in case)
    values = {label: [case[label] for case in everyone.values() if label in case] for label in labels}
    return {
        "folds": [
            {"folder": report.folder.name, "mean_dsc": report.mean_dsc, "held_out": len(report.held_out)}
            for report in reports
        ],
        "mean_dsc": mean_of_folds(reports),
        "labels": {
            label: {"mean_dsc": float(np.mean(found)), "cases": len(found)} for label, found in values.items()
        },
        "cases": everyone,
    }


def mean_of_folds(reports: list[Report]) -> float:
    """Return the mean DSC of the folds that have one; NaN where none has."""
    scores = [report.mean_dsc for report in reports if not math.isnan(report.mean_dsc)]
    return float(np.mean(scores)) if scores else math.nan


def save_folds(path: Path, reports: list[Report]) -> Path:
    """Write `summarise` as JSON, whole or not at all."""
    return write_whole(path, json.dumps(as_plain(summarise(reports)), indent=1) + "\n")
