"""From scores under shifts to what they say: curves over severity, the area below them, the worst, and paired
tests.

Rows are dictionaries as `ctssl.robustness` makes them: `model, case, patient, shift, severity, label, dsc,
nsd, hd95_mm, ...`, with shift "clean" and severity 0 for the scan as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.evaluation.statistics import add_holm, mean_interval, paired, patient_means, summary
from ctssl.shifts.stamps import CLEAN

Row = dict[str, Any]
SCORES = ("dsc", "nsd", "hd95_mm")


def curve(rows: list[Row], model: str, shift: str) -> list[Row]:
    """Return a row per severity, from 0 (clean): means with intervals over patients, as
    `ctssl.evaluation.statistics.summary` gives them."""
    mine = [row for row in rows if row["model"] == model and row["shift"] in (shift, CLEAN)]
    result = []
    for severity in sorted({row["severity"] for row in mine}):
        found = summary([row for row in mine if row["severity"] == severity], "severity", str(severity))
        del found["stratum"]
        result.append({"model": model, "shift": shift, "severity": severity, **found})
    return result


def area(severities: list[int], values: list[float]) -> float:
    """Return the area under a curve by the trapezoid rule, over its width: a mean, 1 for a score that is 1
    everywhere."""
    steps = np.diff(severities)
    middle = (np.array(values[1:]) + np.array(values[:-1])) / 2
    return round(float((steps * middle).sum() / steps.sum()), 12)  # so that equal curves differ by nothing


def areas(rows: list[Row], model: str, shift: str) -> list[Row]:
    """Return, for each case and label of a model, the clean scores, the areas under its own curves, and how much
    DSC is lost (clean minus area)."""
    cases: dict[tuple[str, int], dict[int, Row]] = {}
    for row in rows:
        if row["model"] == model and row["shift"] in (shift, CLEAN):
            cases.setdefault((row["case"], row["label"]), {})[row["severity"]] = row
    result = []
    for (case, label), found in sorted(cases.items()):
        order = sorted(found)
        entry: Row = {"case": case, "label": label, "patient": found[0]["patient"]}
        for key in SCORES:
            entry[key] = area(order, [found[s][key] for s in order])
            entry[f"clean_{key}"] = round(found[0][key], 12)
        entry["dsc_lost"] = round(entry["clean_dsc"] - entry["dsc"], 12)
        result.append(entry)
    return result


def overview(rows: list[Row], models: list[str], shifts: list[str]) -> list[Row]:
    """Return, for each model and shift, the clean DSC, the area under the DSC curve, the worst severity, and the
    case that falls most."""
    result = []
    for model in models:
        for shift in shifts:
            each, points = areas(rows, model, shift), curve(rows, model, shift)
            area_dsc = patient_means(each, "dsc")
            low, high = mean_interval(area_dsc)
            worst = min(points[1:], key=lambda point: point["dsc"])
            fallen = biggest_fall(rows, model, shift)
            count = len({row["case"] for row in each})
            result.append(
                {
                    "model": model,
                    "shift": shift,
                    "cases": count,
                    "clean_dsc": points[0]["dsc"],
                    "area_dsc": float(area_dsc.mean()),
                    "low": low,
                    "high": high,
                    "worst_dsc": worst["dsc"],
                    "at_severity": worst["severity"],
                    "worst_case": fallen["case"],
                    "from_dsc": fallen["from_dsc"],
                    "to_dsc": fallen["dsc"],
                }
            )
    return result


def biggest_fall(rows: list[Row], model: str, shift: str | None = None) -> Row:
    """Return the row of the case, label and severity that loses most DSC against the clean scan, with `from_dsc`."""
    mine = [row for row in rows if row["model"] == model]
    clean = {(row["case"], row["label"]): row["dsc"] for row in mine if row["shift"] == CLEAN}
    moved = [row for row in mine if (row["shift"] == shift if shift else row["shift"] != CLEAN)]
    found = max(moved, key=lambda row: clean[row["case"], row["label"]] - row["dsc"])
    return {**found, "from_dsc": clean[found["case"], found["label"]]}


def against_clean(rows: list[Row], model: str, shifts: list[str]) -> list[Row]:
    """Test each shift of a model against its own clean scans, by case: areas minus clean; Holm over these rows."""
    return _tested(
        shifts,
        SCORES,
        lambda shift: [
            {**row, **{f"other_{key}": row[f"clean_{key}"] for key in SCORES}}
            for row in areas(rows, model, shift)
        ],
        {"model": model},
    )


def against_model(rows: list[Row], model: str, other: str, shifts: list[str]) -> list[Row]:
    """Test one model against another by case, clean and under each shift: areas, and the DSC lost; Holm over these
    rows."""
    facts = {"model": model, "against": other}
    clean = [_twin(areas(rows, model, shifts[0]), areas(rows, other, shifts[0]), "clean_")]
    result = _tested([CLEAN], SCORES, lambda _: clean[0], facts)
    metrics = (*SCORES, "dsc_lost")
    result += _tested(
        shifts, metrics, lambda s: _twin(areas(rows, model, s), areas(rows, other, s), ""), facts
    )
    return corrected(result)


def _twin(mine: list[Row], others: list[Row], prefix: str) -> list[Row]:
    """Pair the rows of the cases and labels that both have: `key` of the one, `other_key` of the other."""
    found = {(row["case"], row["label"]): row for row in others}
    keys = (*SCORES, "dsc_lost") if not prefix else SCORES
    return [
        {
            "patient": row["patient"],
            **{k: row[prefix + k] for k in keys},
            **{f"other_{k}": found[row["case"], row["label"]][prefix + k] for k in keys},
        }
        for row in mine
        if (row["case"], row["label"]) in found
    ]


def _tested(
    shifts: list[str], metrics: tuple[str, ...], pairs: Callable[[str], list[Row]], facts: Row
) -> list[Row]:
    result = [{**facts, "shift": shift, **row} for shift in shifts for row in paired(pairs(shift), metrics)]
    return corrected(result)


def corrected(rows: list[Row]) -> list[Row]:
    """Add `p_holm` to rows, corrected over all of them together."""
    add_holm(rows)
    return rows


Line = list[tuple[int, float, float, float]]  # severity, mean, and its interval


def picture(rows: list[Row], models: list[str], shifts: list[str], path: Path) -> None:
    """Draw DSC against severity: a panel for each shift, a line with its interval for each model."""
    draw(
        {
            shift: {
                model: [
                    (p["severity"], p["dsc"], p["dsc_low"], p["dsc_high"]) for p in curve(rows, model, shift)
                ]
                for model in models
            }
            for shift in shifts
        },
        path,
    )


def draw(panels: dict[str, dict[str, Line]], path: Path, *, whole: bool = True) -> None:
    """Draw panels of lines, by shift and model. `whole`: the axis goes from 0 to 1, otherwise as far as the lines."""
    from matplotlib.figure import Figure

    columns = min(4, len(panels))
    count = math.ceil(len(panels) / columns)
    figure = Figure(figsize=(3.0 * columns + 0.4, 2.6 * count + 0.5), layout="constrained", facecolor="white")
    places = figure.subplots(count, columns, sharey=True, squeeze=False).ravel()
    for place, (shift, lines) in zip(places, panels.items(), strict=False):
        for number, (model, points) in enumerate(lines.items()):
            severity, mean, low, high = zip(*points, strict=True)
            place.plot(severity, mean, "o-", ms=4, color=f"C{number}", label=model)
            place.fill_between(severity, low, high, alpha=0.15, color=f"C{number}", lw=0)
        place.set_title(shift, fontsize=10)
        place.set(xlabel="severity", xticks=range(6), **({"ylim": (0, 1)} if whole else {}))
    for place in places[len(panels) :]:
        place.set_axis_off()
    for line in range(count):
        places[line * columns].set_ylabel("DSC")
    handles, models = places[0].get_legend_handles_labels()
    figure.legend(
        handles, models, loc="outside lower center", ncols=min(3, columns), fontsize=8, frameon=False
    )
    figure.savefig(path, dpi=110, format="png")
