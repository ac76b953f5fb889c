"""Rows of scores to the report of a robustness measurement."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.case import Case, read_case
from ctssl.evaluation.statistics import summary
from ctssl.files.atomic import write_whole
from ctssl.files.text import as_plain, csv_text, markdown_table
from ctssl.files.versions import versions
from ctssl.robustness.conclusion import conclude, on_crops, sizes
from ctssl.robustness.curves import (
    Row,
    against_clean,
    against_model,
    biggest_fall,
    corrected,
    curve,
    overview,
    picture,
)
from ctssl.robustness.masks import Source
from ctssl.robustness.measure import shifted_scan
from ctssl.shifts.stamps import CLEAN, shift_name

EXPLAINED = """{head}. DSC, HD95 in mm, NSD at {tolerance:g} mm; severity 0 is the scan as it is, `ctssl shift --help` tells what
1 to 5 are. `area` is the mean height of a case's curve from severity 0 to the highest, so it loses less than the worst severity
does; `dsc_lost` is clean minus area; intervals are 95% bootstrap over patients. `worst_dsc` is the lowest mean of a severity,
`worst_case` the case that falls most at any one. Differences are first minus second (shifted against clean: area minus clean);
Wilcoxon signed-rank, two-sided, with the rank-biserial effect (1: every patient the same way), Holm over each table; no p below 6
patients, whose scans and labels are averaged first. `undefined`: cases without a value on one side (HD95 of an empty mask), which
do not count: misses show in DSC and NSD. A label counts in a case if truth or a mask has it there under any shift; where neither
has it, its DSC is 1. Pairs: `covered` is the share of the first scan that the second covers,
`volume_difference` is relative to the mean of both, concordance is Lin's, of volumes over pairs or of the features of a pair,
cosine is that of its features; masks that agree need not be right. A shift acts on the grid of the scan (`scan_mm`, its finest
spacing): `change_hu` is the mean absolute change over the body there, `working_change_hu` what is left of it at the model's
working spacing (`working_mm`).
"""


NOTHING = {
    "dsc": 1.0,
    "hd95_mm": 0.0,
    "nsd": 1.0,
    "lesions": 0,
    "lesions_found": 0,
    "false_positives": 0,
    "volume_ml": 0.0,
    "volume_error_ml": 0.0,
    "best_dsc": 1.0,
}
"""Scores of a label that neither truth nor mask has."""


@dataclass(frozen=True)
class Robustness:
    """`rows`: one per model, case, shift, severity and label. The other tables follow from them; see
    `report.md`."""

    rows: list[Row]
    models: list[str]
    shifts: list[str]
    tolerance_mm: float
    overview: list[Row] = field(default_factory=list)
    curves: list[Row] = field(default_factory=list)
    strata: list[Row] = field(default_factory=list)
    against_clean: list[Row] = field(default_factory=list)
    against_model: list[Row] = field(default_factory=list)
    pairs: list[Row] = field(default_factory=list)
    pairs_summary: list[Row] = field(default_factory=list)
    sizes: list[Row] = field(default_factory=list)
    conclusion: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    device: str = ""
    seconds: float = 0.0

    def plain(self) -> dict[str, Any]:
        """Return everything for JSON; undefined values (NaN) become null."""
        return as_plain(asdict(self)) | {"versions": versions()}

    def markdown(self) -> str:
        """Return the conclusion, how to read the tables, and all tables but the rows, as Markdown."""
        cases = {row["case"] for row in self.rows}
        head = f"{', '.join(self.models)}; {len(cases)} cases of {len({row['patient'] for row in self.rows})} patients"
        text = "".join(f"{sentence}\n\n" for sentence in self.conclusion)
        text += EXPLAINED.format(tolerance=self.tolerance_mm, head=head if cases else ", ".join(self.models))
        text += "".join(f"\n- {note}" for note in self.notes) + "\n"
        if self.rows:
            text += "\n![DSC against severity](curves.png)\n"
        titles = {
            "sizes": "How large each shift is",
            "overview": "Each shift",
            "against_model": "One model against another",
            "against_clean": "Shifted against clean",
            "strata": "Strata, clean scans",
            "curves": "Scores by severity",
            "pairs_summary": "Two reconstructions of one acquisition",
            "pairs": "Each pair",
        }
        for name, title in titles.items():
            if getattr(self, name):
                text += f"\n## {title}\n\n{markdown_table(getattr(self, name))}"
        return text

    def save(self, folder: str | os.PathLike) -> Path:
        """Write `report.json`, `report.md`, `rows.csv` and `curves.png`, each whole or not at all, and return the folder."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "report.json", json.dumps(self.plain(), indent=1) + "\n")
        write_whole(folder / "report.md", self.markdown())
        for name in ("rows.csv", "curves.png"):  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        if self.rows:
            write_whole(folder / "rows.csv", csv_text(self.rows))
            write_whole(
                folder / "curves.png", lambda part: picture(self.rows, self.models, self.shifts, part)
            )
        return folder


def notes(sources: list[Source], cases: list[Case]) -> list[str]:
    """Return a warning for each model that was trained on some of the cases."""
    found = []
    for source in sources:
        seen = [case.name for case in cases if case.name in source.trained_on]
        if seen:
            found.append(
                f"{source.name} was trained on {len(seen)} of these {len(cases)} cases ({', '.join(seen[:3])} ...): "
                "choose held-out ones (--cases)"
            )
    return found


def counted(rows: list[Row]) -> tuple[list[Row], list[str]]:
    """Return the rows that count, for the same labels of a case under every model, shift and severity, and a sentence
    on the cases that are left out.

    A label counts if any true mask has it. It counts in a case if truth or a mask, of any model under any shift, has it there;
    where then neither has it, it is right. Where there is one label alone, it counts in every case.
    """
    known = {row["label"] for row in rows if row["volume_ml"] > 0} or {row["label"] for row in rows}
    there: dict[str, set[int]] = {row["case"]: set(known) if len(known) == 1 else set() for row in rows}
    found: dict[tuple, dict[int, Row]] = {}
    for row in rows:
        if row["label"] in known and (row["volume_ml"] > 0 or row["volume_error_ml"] > 0):
            there[row["case"]].add(row["label"])
        place = tuple(row[key] for key in ("model", "case", "shift", "severity"))
        found.setdefault(place, {})[row["label"]] = row
    result = []
    for place, labels in found.items():
        other = next(iter(labels.values()))
        result += [
            labels.get(label) or {**other, "label": label, **NOTHING} for label in sorted(there[place[1]])
        ]
    empty = sorted(case for case, labels in there.items() if not labels)
    if not empty:
        return result, []
    shown = ", ".join(empty[:5]) + (" ..." if len(empty) > 5 else "")
    told = f"{len(empty)} cases are not counted, as neither truth nor any mask holds one of the several labels: {shown}"
    return result, [told]


def left(rows: list[Row]) -> list[str]:
    """Return sentences on shifts that leave scans as they are, cut labels off, or mean something else on crops."""
    found, first = on_crops(rows), rows[0]["model"] if rows else ""
    for place in dict.fromkeys((row["shift"], row["severity"]) for row in rows):
        mine = [row for row in rows if (row["shift"], row["severity"]) == place and row["model"] == first]
        cases = {row["case"]: row["unchanged"] for row in mine}
        if same := sum(cases.values()):
            found.append(
                f"{place[0]} {place[1]} leaves {same} of {len(cases)} scans as they are: that they lose nothing says "
                "nothing"
            )
        best = [row["best_dsc"] for row in mine]
        if min(best) < 1:
            found.append(
                f"{place[0]} {place[1]} cuts labels off: no mask can have a DSC above {np.mean(best):.2f} on average, "
                f"{min(best):.2f} in the worst case (`best_dsc` of rows.csv)"
            )
    return found


def power(found: Robustness) -> list[str]:
    """Return a sentence for each table where too few patients keep every corrected p above 0.05."""
    notes = []
    for name, text in (
        ("against_model", "one model against another"),
        ("against_clean", "shifted against clean"),
    ):
        tested = [row for row in getattr(found, name) if not np.isnan(row["p"])]
        if tested:
            patients = max(row["patients"] for row in tested)
            least = min(1.0, 2.0 ** (1 - patients) * len(tested))
            if least > 0.05:
                notes.append(
                    f"{text}: with {patients} patients and {len(tested)} tests no `p_holm` can fall below {least:.2g}; "
                    "fewer --shifts, chosen beforehand, lower that, more patients much more"
                )
    return notes


def tables(
    rows: list[Row], models: list[str], shifts: list[str], by: tuple[str, ...], tolerance_mm: float
) -> Robustness:
    """Build every table that follows from the rows."""
    if not rows:
        return Robustness([], models, shifts, tolerance_mm)
    strata = []
    for model in models if by else []:
        clean = [row for row in rows if row["model"] == model and row["shift"] == CLEAN]
        for column in by:
            for value in sorted({str(row[column]) for row in clean}):
                chosen = [row for row in clean if str(row[column]) == value]
                strata.append({"model": model, **summary(chosen, column, value)})
    found = Robustness(
        rows,
        models,
        shifts,
        tolerance_mm,
        overview(rows, models, shifts),
        [point for model in models for name in shifts for point in curve(rows, model, name)],
        strata,
        corrected([row for model in models for row in against_clean(rows, model, shifts)]),
        corrected([row for other in models[1:] for row in against_model(rows, models[0], other, shifts)]),
        sizes=sizes(rows),
    )
    return replace(found, conclusion=conclude(found))


def draw(source: Source, cases: list[Case], rows: list[Row], count: int, out: Path, seed: int) -> None:
    """Draw overlays of the largest losses in DSC, one of each shift: the mask in colour, the truth as a line."""
    from ctssl.pictures import overlay

    (out / "overlays").mkdir(exist_ok=True)
    for old in (out / "overlays").glob("*--*.png"):
        old.unlink()
    mine = [row for row in rows if row["model"] == source.name]
    falls = [
        biggest_fall(mine, source.name, name)
        for name in dict.fromkeys(row["shift"] for row in mine)
        if name != CLEAN
    ]
    for worst in sorted(falls, key=lambda row: row["dsc"] - row["from_dsc"])[:count]:
        (case,) = [case for case in cases if case.name == worst["case"]]
        scan, truth = read_case(case)
        place = (worst["shift"], worst["severity"])
        for name, severity, score in ((CLEAN, 0, worst["from_dsc"]), (*place, worst["dsc"])):
            seen = shifted_scan(scan, (name, severity), seed)
            path = out / "overlays" / f"{case.name}--{shift_name(name, severity)}.png"
            overlay(
                seen,
                source.mask(seen, case.name, shift_name(name, severity)),
                path,
                outline=truth,
                title=f"{case.name}, {shift_name(name, severity)}: DSC {score:.2f}",
            )
