"""What comes out of a fine-tuning, and the files that it leaves beside the weights: scores of every held-out
case, curves and pictures."""

from __future__ import annotations

import io
import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.seen import SEEN
from ctssl.evaluation.scores import labels_in, score_masks
from ctssl.files.text import csv_text
from ctssl.files.versions import versions
from ctssl.finetuning.settings import Settings
from ctssl.pictures import Cuts, cut_slices, draw_cuts
from ctssl.volume.volume import Volume
from ctssl.zoo import Channel

TOLERANCE_MM = 2.0
WRITTEN = ("README.md", "best.png", "cases.csv", "curves.png", "median.png", "report.json", SEEN, "worst.png")


@dataclass(frozen=True)
class Report:
    """What came out of a fine-tuning.

    `folder`: of the segmenter. `held_out`: DSC by case and label, as `ctssl evaluate` scores them: a label
    that neither the case nor the mask has is left out. `train`: names of the training cases, `validated` of
    those among them that served as validation set. `curve`: step, loss and (with validation cases) DSC at
    each evaluation. `warnings`: what is suspicious about cases or result.
    """

    folder: Path
    held_out: dict[str, dict[str, float]]
    train: list[str]
    validated: list[str]
    curve: list[dict[str, float]]
    seconds: float
    warnings: list[str] = field(default_factory=list)
    empty: bool = False

    @property
    def mean_dsc(self) -> float:
        """Mean over held-out cases of each case's mean over its labels; NaN when none was held out."""
        scores = [np.mean(list(case.values())) for case in self.held_out.values() if case]
        return float(np.mean(scores)) if scores else math.nan

    def by_label(self) -> dict[str, tuple[float, int]]:
        """Return the mean DSC and the number of cases of each label that a held-out case, or its mask, has."""
        names = dict.fromkeys(name for case in self.held_out.values() for name in case)
        scores = {name: [case[name] for case in self.held_out.values() if name in case] for name in names}
        return {name: (float(np.mean(values)), len(values)) for name, values in scores.items()}

    @property
    def learned(self) -> bool:
        """False where every DSC that was measured, of validation and held-out cases, is 0.000. Of held-out cases whose masks
        are all empty nothing is measured: what is marked there is wrong, whatever was learned."""
        measured = [row["dsc"] for row in self.curve if "dsc" in row]
        if not self.empty:
            measured += [value for case in self.held_out.values() for value in case.values()]
        return not measured or max(measured) >= 0.0005


@dataclass(frozen=True)
class Judged:
    """A held-out case: a row of scores for each label, and the slices for its picture."""

    rows: list[dict[str, Any]]
    cuts: Cuts

    @property
    def dsc(self) -> dict[str, float]:
        """By label."""
        return {row["label"]: row["dsc"] for row in self.rows}


def judge(mask: Volume, truth: Volume, scan: Volume, labels: dict[int, str]) -> Judged:
    """Score a mask against the truth on the same grid, label by label, as `ctssl evaluate` does.

    `labels`: names of the labels that the model knows; others of the truth do not count. With several labels, only those
    that occur in the truth or in the mask are scored.
    """
    there = labels_in(truth) | labels_in(mask)
    known = sorted(labels) if len(labels) == 1 and not there else sorted(there & labels.keys())
    rows = score_masks(mask, truth, name=truth.name, tolerance_mm=TOLERANCE_MM, labels=known) if known else []
    named = [{**{k: v for k, v in row.items() if k != "case"}, "label": labels[row["label"]]} for row in rows]
    return Judged(named, cut_slices(scan, mask, truth))


@dataclass(frozen=True)
class Facts:
    """How a segmenter was made: for `report.json` and the card. `model` and `licence`: of the starting weights."""

    train: list[str]
    data: str
    validated: list[str]
    model: str
    licence: str
    from_scratch: bool
    head: str
    spacing_mm: float
    window_hu: tuple[float, float]
    channels: tuple[Channel, ...]
    threshold: float
    device: str


def result_files(
    report: Report,
    judged: dict[str, Judged],
    facts: Facts,
    settings: Settings,
    *,
    labels: dict[int, str],
    identity: dict[str, Any],
) -> dict[str, str | bytes]:
    """Return the files that accompany a segmenter, but its card, by name: some of `WRITTEN`.

    Args:
        labels: that are learned and judged.
        identity: of the request; see `ctssl.finetuning.request`.
    """
    text = {
        "held_out": report.held_out,
        "empty": report.empty,
        "mean_dsc": None if math.isnan(report.mean_dsc) else report.mean_dsc,
        **asdict(facts),
        "warnings": report.warnings,
        "curve": report.curve,
        "seconds": round(report.seconds, 1),
        "settings": asdict(settings),
        "asked": identity,
        "versions": versions(),
    }
    files: dict[str, str | bytes] = {"report.json": json.dumps(text, indent=1) + "\n"}
    if judged:
        files["cases.csv"] = _cases_csv(judged)
        files |= _portraits(report, judged, facts, labels)
    if report.curve:
        files["curves.png"] = _curves(report.curve)
    return files


def _cases_csv(judged: dict[str, Judged]) -> str:
    """Return the text of `cases.csv`: a row for each case and label."""
    rows = [{"case": name, **row} for name, one in judged.items() for row in one.rows]
    return csv_text([{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows])


def _portraits(
    report: Report, judged: dict[str, Judged], facts: Facts, labels: dict[int, str]
) -> dict[str, bytes]:
    """Draw the worst, the median and the best held-out case as PNG: the mask in colour, the truth as a white line."""
    ranked = sorted(
        (name for name, case in report.held_out.items() if case),
        key=lambda name: np.mean(list(report.held_out[name].values())),
    )
    if not ranked:
        return {}
    found = {}
    for place, name in (("worst", ranked[0]), ("median", ranked[len(ranked) // 2]), ("best", ranked[-1])):
        scores = ", ".join(f"{label} DSC {value:.2f}" for label, value in judged[name].dsc.items())
        picture = io.BytesIO()
        title = f"{place} held-out case, {name}: {scores}"
        draw_cuts(judged[name].cuts, picture, window_hu=facts.window_hu, title=title, names=labels)
        found[f"{place}.png"] = picture.getvalue()
    return found


def _curves(curve: list[dict[str, float]]) -> bytes:
    """Draw the loss, and the validation DSC where there is one, over the steps, as PNG."""
    from matplotlib.figure import Figure

    titles = {
        key: title for key, title in (("loss", "training loss"), ("dsc", "validation DSC")) if key in curve[0]
    }
    figure, picture = Figure(figsize=(3.2 * len(titles), 2.6), layout="constrained"), io.BytesIO()
    for axes, (key, title) in zip(
        figure.subplots(1, len(titles), squeeze=False)[0], titles.items(), strict=True
    ):
        axes.plot([row["step"] for row in curve], [row[key] for row in curve], lw=1.4, marker=".")
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    figure.savefig(picture, dpi=100, format="png")
    return picture.getvalue()
