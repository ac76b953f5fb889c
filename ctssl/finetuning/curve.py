"""Label efficiency: how good each starting point becomes with few and with many labelled patients."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.case import Case, Dataset
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.splits import patients
from ctssl.evaluation.statistics import add_holm, gained, mean_interval, patient_means, with_interval
from ctssl.files.atomic import write_whole
from ctssl.files.text import as_plain, csv_text, markdown
from ctssl.finetuning.job import prepare_job, survey_of
from ctssl.finetuning.prepare import choose_sides
from ctssl.finetuning.report import Report
from ctssl.finetuning.request import Request, check_request
from ctssl.finetuning.run import run
from ctssl.finetuning.settings import Settings
from ctssl.finetuning.start import BASELINES

Row = dict[str, Any]
ALL = "all"
USUAL = (1, 2, 5, 10)
MARK = "curve.json"  # in the folder of an earlier call


@dataclass(frozen=True)
class Curve:
    """Scores of trainings with different numbers of labelled patients.

    Attributes:
        rows: a row for each training and held-out case: `model, shots, seed, case, patient, dsc`.
        models: the starting points, in the order given; the last one is what the others are compared with.
        shots: numbers of training patients, rising.
        grid: spacing and window of all trainings, in words.
    """

    rows: list[Row]
    models: list[str]
    shots: list[int]
    grid: str = ""

    def scores(self, model: str, shots: int) -> list[Row]:
        """Return `patient, dsc` of each held-out case, averaged over the seeds."""
        found: dict[tuple[str, str], list[float]] = {}
        for row in self.rows:
            if (row["model"], row["shots"]) == (model, shots):
                found.setdefault((row["case"], row["patient"]), []).append(row["dsc"])
        return [{"case": c, "patient": p, "dsc": float(np.mean(v))} for (c, p), v in found.items()]

    def points(self) -> list[Row]:
        """Return for each model and number of patients the mean DSC with its 95% interval over patients and, but for
        the last model, its `gain` over that one, paired by patient, with an interval and p (Holm over the table)."""
        result: list[Row] = []
        for shots in self.shots:
            reference = {row["case"]: row["dsc"] for row in self.scores(self.models[-1], shots)}
            for model in self.models:
                scores = self.scores(model, shots)
                means = patient_means(scores, "dsc")
                low, high = mean_interval(means)
                point = {"model": model, "shots": shots, "dsc": float(means.mean())}
                point |= {"low": low, "high": high}
                # a label that neither truth nor mask has gives no score
                both = [s for s in scores if s["case"] in reference]
                if model != self.models[-1] and both:
                    found = gained([{**s, "other_dsc": reference[s["case"]]} for s in both], "dsc")
                    point |= {
                        "gain": found["difference"],
                        "gain_low": found["low"],
                        "gain_high": found["high"],
                        "p": found["p"],
                    }
                result.append(point)
        add_holm(result, into="p")
        return result

    def table(self) -> str:
        """Return `points` as Markdown."""
        columns = ["patients", "model", "DSC (95% interval)", f"against {self.models[-1]}", "p"]
        lines = []
        for point in self.points():
            gain = "gain" in point
            lines.append(
                [
                    str(point["shots"]),
                    point["model"],
                    f"{point['dsc']:.3f} ({point['low']:.3f} to {point['high']:.3f})",
                    with_interval(point["gain"], point["gain_low"], point["gain_high"]) if gain else "",
                    "" if not gain else "too few" if math.isnan(point["p"]) else f"{point['p']:.3f}",
                ]
            )
        return markdown(columns, lines)


def measure_curve(
    data: str | os.PathLike,
    *,
    out: str | os.PathLike,
    models: Sequence[str],
    shots: Sequence[int | str] | None = None,
    seeds: int = 3,
    hold_out: float | list[str] | None = None,
    settings: Settings | None = None,
    head: str = "",
    spacing_mm: float | None = None,
    window_hu: tuple[float, float] | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Curve:
    """Train every model on 1, 2, 5, ... labelled patients and score each training on the same held-out cases.

    Trainings that are finished in `out` are kept: an interrupted call goes on, a longer list adds to it.

    Args:
        data: folder or CSV in a layout that `ctssl.datasets.find_cases` knows.
        out: folder for `curve.png`, `report.md`, `cases.csv`, and a segmenter for each training.
        models: starting points as for `ctssl.finetune`; "scratch" is the first model's encoder with initial weights.
            All are compared with the last one.
        shots: numbers of training patients; "all" is all that are not held out. None: 1, 2, 5, 10 and all, as far as
            there are so many.
        seeds: trainings of each kind; each draws patients and crops anew, the same for every model.
        hold_out: as for `ctssl.finetune`.
        settings: of every training; its seed divides the cases, the trainings take 0, 1, 2, ...
        head, spacing_mm, window_hu, device, progress: as for `ctssl.finetune`, the same for every training; spacing and window
            that are not given are those that it would plan for the first model with all training patients.

    Raises:
        ValueError: invalid models, shots or seeds, before any training; else as `ctssl.finetune`.
    """
    folder, settings = Path(out), settings or Settings()
    names = _starts(models)
    _check_own(folder)
    if seeds < 1:
        raise ValueError(f"seeds={seeds}: give at least 1")
    dataset = find_cases(data)
    model, scratch = next(iter(names.values()))
    first = Request(folder, model, settings, head, hold_out, from_scratch=scratch)
    first = replace(first, spacing_mm=spacing_mm, window_hu=window_hu, device=device, progress=progress)
    first, train, held = _divided(first, dataset)
    counts = _counts(shots, len(patients(train)))
    surveys = {  # every case is read once for each model
        name: survey_of(replace(first, model=one, from_scratch=random), dataset, dataset.cases)
        for name, (one, random) in names.items()
    }
    # one plan for all trainings: the gain is of the weights alone
    preprocess = prepare_job(first, dataset, next(iter(surveys.values()))).plan.preprocess
    spacing_mm, window_hu = preprocess.spacing_mm, preprocess.window_hu
    grid = f"{spacing_mm:g} mm, {window_hu[0]:g} to {window_hu[1]:g} HU"
    patient, rows = {case.name: case.patient for case in held}, []
    for count in counts:
        for seed in range(seeds):
            for name, (model, scratch) in names.items():
                asked = replace(
                    first,
                    out=folder / f"{_plain(name)}-{count}-{seed}",
                    model=model,
                    from_scratch=scratch,
                    few_shot=count if count < len(patients(train)) else None,
                    settings=replace(settings, seed=seed),
                    spacing_mm=spacing_mm,
                    window_hu=window_hu,
                    keep=True,
                )
                check_request(asked)
                report = run(asked, dataset, survey=surveys[name])
                rows += _rows_of(report, {"model": name, "shots": count, "seed": seed}, patient)
            write_curve(Curve(rows, list(names), [n for n in counts if n <= count], grid), folder)
    return Curve(rows, list(names), counts, grid)


def _check_own(folder: Path) -> None:
    """Raise `FileExistsError` for files that would be replaced and are not of an earlier call."""
    taken = [name for name in ("cases.csv", "report.md", "curve.png") if (folder / name).exists()]
    if taken and not (folder / MARK).exists():
        raise FileExistsError(
            f"{folder} holds a {taken[0]} that is not of `ctssl curve`; choose another folder (--out)"
        )


def _counts(shots: Sequence[int | str] | None, most: int) -> list[int]:
    """Return the numbers of patients, rising. Raises `ValueError` for a number that there are not."""
    if shots is None:
        shots = [n for n in USUAL if n < most] + [ALL]
    counts = sorted({most if one == ALL else int(one) for one in shots})
    if not counts or counts[0] < 1 or counts[-1] > most:
        raise ValueError(
            f"shots={list(shots)}: give numbers from 1 to {most}, the patients to train on, or 'all'"
        )
    return counts


def _rows_of(report: Report, where: Row, patient: dict[str, str]) -> list[Row]:
    """Return the mean DSC of each held-out case over its labels, with its patient and `where` it was measured."""
    return [
        {**where, "case": case, "patient": patient[case], "dsc": float(np.mean(list(dsc.values())))}
        for case, dsc in report.held_out.items()
        if dsc
    ]


def _divided(first: Request, dataset: Dataset) -> tuple[Request, list[Case], list[Case]]:
    """Return a request that divides the cases alike whatever its seed is, the cases to draw training patients from, and those to
    judge on."""
    sides = choose_sides(dataset.cases, first)
    if first.hold_out is not None or not any(case.split for case in dataset.cases):  # drawn: once for all
        first = replace(first, hold_out=[case.name for case in sides.held_out])
    return first, [case for case in sides.training if case.name not in sides.named], sides.held_out


def _starts(models: Sequence[str]) -> dict[str, tuple[str, bool]]:
    """Return for each model what `finetune` takes: the model, and whether from scratch."""
    if len(set(models)) != len(models) or len(models) < 2:
        raise ValueError(
            f"models={list(models)}: give two or more different ones, such as vit-wild-lesions, scratch"
        )
    if len({_plain(model) for model in models}) < len(models):
        raise ValueError(
            f"models={list(models)}: two have the same last name, which names their trainings; rename a folder"
        )
    first = next((model for model in models if model != "scratch"), "")
    if first in BASELINES and "scratch" in models:
        raise ValueError(
            f"'scratch' is the first model's encoder without pretraining, and {first} has none; leave one out"
        )
    return {model: (first, True) if model == "scratch" else (model, False) for model in models}


def _plain(name: str) -> str:
    return Path(name).name or "model"


def write_curve(found: Curve, folder: Path) -> None:
    """Write `cases.csv`, `report.md`, `curve.json` and `curve.png`."""
    # first: it says that the others are of this command
    write_whole(folder / MARK, json.dumps(as_plain(found.points()), indent=1) + "\n")
    write_whole(folder / "cases.csv", csv_text(found.rows))
    seeds, cases = (len({row[key] for row in found.rows}) for key in ("seed", "case"))
    text = f"""# Label efficiency

Mean DSC of {cases} held-out cases. Trainings of each kind: {seeds}, all at {found.grid}; a case counts with the mean of its
scores. Intervals over patients; p by Wilcoxon's test, corrected by Holm.

{found.table()}
![Learning curves](curve.png)
"""
    write_whole(folder / "report.md", text)
    write_whole(folder / "curve.png", lambda part: draw_curve(found.points(), part))


def draw_curve(points: list[Row], path: Path, *, levels: dict[str, float] | None = None) -> None:
    """Draw mean DSC over the number of training patients, a line for each model, with its interval.

    `levels`: DSC of what takes no labels, by name; drawn as dashed lines.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.0, 4.0), layout="constrained")
    axes = figure.subplots()
    for model in dict.fromkeys(point["model"] for point in points):
        mine = [point for point in points if point["model"] == model]
        x = [point["shots"] for point in mine]
        (line,) = axes.plot(x, [point["dsc"] for point in mine], marker="o", label=model)
        axes.fill_between(
            x,
            [p["low"] for p in mine],
            [p["high"] for p in mine],
            color=line.get_color(),
            alpha=0.15,
            linewidth=0,
        )
    for number, (name, level) in enumerate((levels or {}).items()):
        axes.axhline(level, linestyle="--", color=f"C{7 + number}", label=name)
    ticks = sorted({point["shots"] for point in points})
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.set_xlabel("labelled patients")
    axes.set_ylabel("mean DSC of held-out cases")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, dpi=150, format="png")
