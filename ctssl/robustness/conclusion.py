"""What a robustness measurement says, in sentences: what a model loses, and which of two models is better."""

from __future__ import annotations

from typing import Any

import numpy as np

from ctssl.evaluation.statistics import FEWEST
from ctssl.robustness.curves import Row
from ctssl.shifts.stamps import CLEAN

SURE = 0.05
NARROW_MM = 250.0  # field of view below which scans are crops
WHOLE_BODY = ("streaks", "dose", "truncation")
"""Shifts that depend on everything the beam passes through, so that a crop of a scan is changed otherwise."""


def conclude(found: Any) -> list[str]:
    """Return the conclusion of a `Robustness` as sentences; empty without any rows."""
    if not found.rows:
        return []
    sentences = [_lost(found, model) for model in found.models]
    return sentences + [_compared(found, other) for other in found.models[1:]]


def _lost(found: Any, model: str) -> str:
    """Say how good a model is on clean scans, and which shifts cost it DSC."""
    mine = [row for row in found.overview if row["model"] == model]
    tests = {
        row["shift"]: row for row in found.against_clean if row["model"] == model and row["metric"] == "dsc"
    }
    losing = sorted(
        (row for row in mine if sure(tests.get(row["shift"])) and tests[row["shift"]]["difference"] < 0),
        key=lambda row: tests[row["shift"]]["difference"],
    )
    named = "; ".join(
        f"{row['shift']} {tests[row['shift']]['difference']:+.3f} on average and {row['worst_dsc'] - row['clean_dsc']:+.3f} at "
        f"severity {row['at_severity']}"
        for row in losing
    )
    untested = [row["shift"] for row in mine if not tested(tests.get(row["shift"]))]
    others = [row["shift"] for row in mine if row not in losing and row["shift"] not in untested]
    clean = f"{model} has a mean DSC of {mine[0]['clean_dsc']:.3f} on {mine[0]['cases']} clean scans."
    loses = f" It loses DSC under {named}." if losing else ""
    rest = f" No loss is significant under {', '.join(others)}." if others else ""
    few = f" Not tested ({FEWEST} patients are needed): {', '.join(untested)}." if untested else ""
    return clean + loses + rest + few


def _compared(found: Any, other: str) -> str:
    """Say what is significant between the first model and another one."""
    rows = [row for row in found.against_model if row["against"] == other]
    certain = [row for row in rows if sure(row) and row["metric"] in ("dsc", "dsc_lost")]
    if not any(map(tested, rows)):
        return f"Between {found.models[0]} and {other}, nothing was tested ({FEWEST} patients are needed)."
    if not certain:
        return f"Between {found.models[0]} and {other}, no difference in DSC is significant."
    texts = []
    for row in certain:
        where = "on clean scans" if row["shift"] == CLEAN else f"under {row['shift']}"
        better = (row["difference"] > 0) == (row["metric"] == "dsc")
        what = "DSC" if row["metric"] == "dsc" else "loss of DSC"
        texts.append(f"{'better' if better else 'worse'} {where} ({what} {row['difference']:+.3f})")
    return f"Against {other}, {found.models[0]} is {'; '.join(texts)}."


def tested(row: Row | None) -> bool:
    """Return whether a test was made, or none was needed since nothing differs."""
    return row is not None and (row["patients"] >= FEWEST or bool(np.isfinite(row["p_holm"])))


def sure(row: Row | None) -> bool:
    """Return whether a test was made and its corrected p is below 0.05."""
    return row is not None and np.isfinite(row["p_holm"]) and row["p_holm"] < SURE


def sizes(rows: list[Row]) -> list[Row]:
    """Return how large each shift is: mean absolute change in HU over the body, on the scans' own grid, where it
    acts, and at the working spacing of the first model.
    """
    first = rows[0]["model"] if rows else ""
    result = []
    for place in dict.fromkeys((row["shift"], row["severity"]) for row in rows if row["shift"] != CLEAN):
        mine = {
            row["case"]: row
            for row in rows
            if row["model"] == first and (row["shift"], row["severity"]) == place and "change_hu" in row
        }
        if not mine:
            continue
        columns = ("scan_mm", "change_hu", "working_mm", "working_change_hu")
        means = {key: float(np.mean([row[key] for row in mine.values()])) for key in columns}
        result.append({"shift": place[0], "severity": place[1], "cases": len(mine), **means})
    return result


def on_crops(rows: list[Row]) -> list[str]:
    """Return, as a sentence, which shifts mean something else on cases that are crops."""
    widths = {row["case"]: row["width_mm"] for row in rows if "width_mm" in row}
    named = [name for name in dict.fromkeys(row["shift"] for row in rows) if name in WHOLE_BODY]
    if not widths or not named or float(np.median(list(widths.values()))) >= NARROW_MM:
        return []
    return [
        f"the cases are crops ({np.median(list(widths.values())):.0f} mm across in the median): {', '.join(named)} mean "
        "something else than on whole scans, since they depend on the whole cross-section of the body"
    ]
