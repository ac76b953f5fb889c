"""Evaluate two folders of masks: a row per case, a table per stratum, a paired comparison."""

from __future__ import annotations

import json
import math
import os
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctssl.datasets.scans import require_scans
from ctssl.evaluation.froc import FLOOR, Froc, draw
from ctssl.evaluation.maps import froc_of_folder
from ctssl.evaluation.scores import METRICS, MaskReader, labels_in, score_masks
from ctssl.evaluation.statistics import FEWEST, paired, summary
from ctssl.evaluation.tables import read_facts
from ctssl.files.atomic import beginning, is_begun, write_whole
from ctssl.files.names import check_label_names
from ctssl.files.text import as_plain, csv_text, markdown_table, read_json
from ctssl.files.versions import versions

WRITTEN = ("cases.csv", "report.json", "report.md", "paired.png", "froc.png")


def check_report(folder: Path, *, overwrite: bool) -> None:
    """Raise `FileExistsError` where a report must not be written; see `Evaluation.save`."""
    if (folder / "config.json").exists():
        raise FileExistsError(
            f"{folder} holds a model with a report of its own; choose another folder (--out)"
        )
    existing = [name for name in WRITTEN if (folder / name).exists()]
    if not existing or is_begun(folder):
        return
    if not overwrite:
        raise FileExistsError(
            f"{folder} holds a {existing[0]}; choose another folder, or pass overwrite=True (--overwrite)"
        )
    try:
        ours = "strata" in read_json(folder / "report.json")
    except (OSError, ValueError, TypeError):
        ours = False
    if not ours:
        raise FileExistsError(
            f"{folder} holds a {existing[0]} that is not of a report of ctssl; choose another folder (--out)"
        )


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        cases: one row per case and label.
        strata: one row per stratum.
        paired: one row per metric, comparing with the other masks; empty without them.
        tolerance_mm: tolerance of the surface Dice in mm.
        missing: true masks without a prediction, which are not counted.
        froc: free-response curve of each label; empty without probability maps.
        empty: cases of several labels in which truth and mask hold none, which are not counted.
    """

    cases: list[dict[str, Any]]
    strata: list[dict[str, Any]]
    paired: list[dict[str, Any]]
    tolerance_mm: float
    missing: list[str] = field(default_factory=list)
    froc: list[Froc] = field(default_factory=list)
    seconds: float = 0.0
    empty: list[str] = field(default_factory=list)

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """Write `cases.csv`, `report.json`, `report.md`, `paired.png` with paired results, and `froc.png` with FROC.

        Raises `FileExistsError` if one of them exists and `overwrite` is False, unless a call that was killed left
        it; in any case for files that are not of a report, and for the folder of a model, whose files have the same names.
        """
        folder = Path(folder)
        check_report(folder, overwrite=overwrite)
        with beginning(folder):
            write_whole(folder / "cases.csv", csv_text(self.cases))
            write_whole(folder / "report.json", json.dumps(self.plain(), indent=1) + "\n")
            write_whole(folder / "report.md", self.markdown())
            if self.paired:
                write_whole(folder / "paired.png", self._picture)
            if self.froc:
                write_whole(folder / "froc.png", lambda part: draw(self.froc, part))
            for name, made in (("paired.png", self.paired), ("froc.png", self.froc)):
                if not made:  # of an earlier report
                    (folder / name).unlink(missing_ok=True)
        return folder

    def plain(self) -> dict[str, Any]:
        """Return everything for JSON; undefined values (NaN) become null."""
        return as_plain(asdict(self)) | {"versions": versions()}

    def markdown(self) -> str:
        """Return the strata, the paired comparison and FROC as Markdown tables."""
        alone = all(row["patient"] == row["case"] for row in self.cases)
        text = (
            f"DSC, HD95 in mm, NSD at {self.tolerance_mm:g} mm; means with 95% bootstrap intervals "
            f"over patients{' (each case counts as one)' if alone else ''}.\n\n"
        )
        if self.missing:
            shown = ", ".join(self.missing[:5]) + (" ..." if len(self.missing) > 5 else "")
            text += f"**{len(self.missing)} true masks have no prediction and are not counted: {shown}**\n\n"
        if self.empty:
            shown = ", ".join(self.empty[:5]) + (" ..." if len(self.empty) > 5 else "")
            text += f"Not counted, as neither truth nor mask holds a label ({len(self.empty)}): {shown}\n\n"
        text += markdown_table(self.strata)
        if self.paired:
            text += (
                "\nPaired by patient, first minus second; Wilcoxon signed-rank test, two-sided, "
                "Holm-corrected "
                f"over the rows; no p-value below {FEWEST} patients. `undefined`: rows without a value "
                "on one "
                "side (HD95 of an empty mask), which are not counted: misses show in DSC and NSD.\n\n"
            )
            text += markdown_table(self.paired)
        if self.froc:
            text += (
                "\nFROC: sensitivity for lesions at 1/8 to 8 false positives per scan, and their mean (the LUNA16 score) "
                f"with its 95% bootstrap interval over patients; candidates above a probability of {self.froc[0].floor:g}."
                "\n\n"
            )
            text += markdown_table([one.row() for one in self.froc])
        return text

    def _picture(self, path: Path) -> None:
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4, 4), layout="constrained")
        axes = figure.subplots()
        for row in self.cases:
            axes.plot([0, 1], [row["other_dsc"], row["dsc"]], color="0.7", lw=0.8, zorder=1)
        for x, key in ((0, "other_dsc"), (1, "dsc")):
            axes.scatter([x] * len(self.cases), [row[key] for row in self.cases], s=18, zorder=2)
        axes.set(
            xticks=[0, 1],
            xticklabels=["other masks (--against)", "these masks"],
            ylabel="DSC",
            ylim=(-0.02, 1.02),
            xlim=(-0.3, 1.3),
        )
        figure.savefig(path, dpi=110, format="png")


def evaluate(
    predictions: str | os.PathLike,
    labels: str | os.PathLike,
    *,
    table: str | os.PathLike | None = None,
    by: tuple[str, ...] = (),
    against: str | os.PathLike | None = None,
    tolerance_mm: float = 2.0,
    names: Mapping[int, str] | None = None,
    froc: str | os.PathLike | None = None,
    froc_threshold: float = FLOOR,
    progress: bool = False,
) -> Evaluation:
    """Compare masks of the same names in two folders.

    Args:
        predictions: folder of predicted masks.
        labels: folder of true masks.
        table: CSV with a row per case: `id` or `case` as the files are named (or `image`, whose file name is
            used), `patient` if several cases share one, and the columns that `by` names.
        by: columns of the table; each value becomes a stratum.
        against: a second folder of predictions for the same cases.
        tolerance_mm: tolerance of the surface Dice in mm.
        names: name of each label, for its stratum and its probability maps.
        froc: folder of probability maps of these cases, `CASE_LABEL.nii.gz` as `ctssl segment --probabilities`
            writes them, for a free-response curve of each label of the truth (`ctssl.evaluation.measure_froc`).
        froc_threshold: probability above which a voxel belongs to a lesion candidate.
        progress: show a progress bar.

    Returns:
        The scores, with a stratum for each label where there are several.
        True masks without a prediction are not counted and listed in `missing`. Where truth and mask are empty, a label
        that is the only one of all cases counts as right (DSC 1); with several labels the case is not counted (`empty`).

    Raises:
        FileNotFoundError: a prediction has no true mask, or no probability map.
        ValueError: two masks are on different grids, the table does not fit, or a map is on another grid or holds
            values outside 0 to 1.
    """
    from tqdm import tqdm

    if not 0 <= tolerance_mm < math.inf:
        raise ValueError(f"tolerance_mm={tolerance_mm}: give a distance of at least 0 mm")
    check_label_names(names or {})
    by = (by,) if isinstance(by, str) else by
    began = time.monotonic()
    truth, predicted = (require_scans(Path(folder), unlabelled=False) for folder in (labels, predictions))
    other = require_scans(Path(against), unlabelled=False) if against is not None else {}
    _check_partners(predicted, truth, predictions)
    if against is not None:
        _check_partners(predicted, other, against)
    facts = read_facts(Path(table), by, sorted(predicted)) if table is not None else {}
    if by and table is None:
        raise ValueError(f"by={by} needs a table with these columns (--table cases.csv)")
    curves: list[Froc] = []
    if froc is not None:  # first: what is wrong with a map is told before the distances, which take longest
        curves = froc_of_folder(
            Path(froc),
            {name: truth[name] for name in predicted},
            patients={name: facts.get(name, {}).get("patient", name) for name in predicted},
            names=names or {},
            floor=froc_threshold,
            progress=progress,
        )
    scored: dict[str, _Scored] = {}
    read_one = MaskReader(names or {})
    for name in tqdm(sorted(predicted), desc="cases", disable=not progress):
        true, mine = read_one(truth[name]), read_one(predicted[name])
        twin = read_one(other[name]) if against is not None else None
        own = labels_in(true) | labels_in(mine)
        either = own if twin is None else own | labels_in(twin)
        asked = sorted(either if own else either | {1})
        scores = score_masks(mine, true, name=name, tolerance_mm=tolerance_mm, labels=asked)
        if twin is not None:
            others = score_masks(twin, true, name=name, tolerance_mm=tolerance_mm, labels=asked)
            for row, second in zip(scores, others, strict=True):
                row |= {f"other_{key}": second[key] for key in METRICS}
        scored[name] = _Scored(own, either, [row | {"patient": name} | facts.get(name, {}) for row in scores])
    rows, pairs, empty = _counted(scored)
    if against is not None:
        _warn_of_others(scored, against)
    strata = _strata(rows, names or {}, by, [facts.get(name, {}) for name in scored])
    missing, seconds = sorted(set(truth) - set(predicted)), round(time.monotonic() - began, 1)
    compared = paired(pairs) if against is not None else []
    return Evaluation(rows, strata, compared, tolerance_mm, missing, curves, seconds, empty)


def _strata(
    rows: list[dict[str, Any]], names: Mapping[int, str], by: tuple[str, ...], scans: list[dict[str, str]]
) -> list[dict[str, Any]]:
    """Return a summary of all rows, of each label where there are several, and of each value of the columns `by`.

    `scans`: what the table says of every scan that was evaluated, also of those without a row."""
    strata = [summary(rows, "all", "", scans=len(scans))]
    labels = sorted({row["label"] for row in rows})
    for label in labels if len(labels) > 1 else []:
        mine = [row for row in rows if row["label"] == label]
        strata.append(summary(mine, names.get(label, f"label {label}"), "", scans=len(scans)))
    for column in by:
        for value in sorted({str(row[column]) for row in rows}):
            mine = [row for row in rows if str(row[column]) == value]
            count = sum(str(scan[column]) == value for scan in scans)
            strata.append(summary(mine, column, value, scans=count))
    return strata


@dataclass(frozen=True)
class _Scored:
    """A case: which labels occur, and their scores."""

    own: set[int]  # labels of truth or mask
    either: set[int]  # and of the other mask
    scores: list[dict[str, Any]]  # a row per label of `either`; of label 1 where all are empty

    def of(self, label: int) -> dict[str, Any]:
        """Return the scores of a label; of one without a row, those of the first row."""
        return next((row for row in self.scores if row["label"] == label), {**self.scores[0], "label": label})


def _counted(scored: dict[str, _Scored]) -> tuple[list[dict], list[dict], list[str]]:
    """Return the rows that count, the rows of the paired comparison (also of labels that only the other masks have),
    and the cases that are left out: those where truth and mask are empty, if there are several labels. The only label
    of all cases is right there."""
    seen = sorted(set().union(*(case.own for case in scored.values())))
    only = (seen or [1])[0] if len(seen) <= 1 else None
    rows, pairs, empty = [], [], []
    for name, case in scored.items():
        if case.either:
            pairs += [row for row in case.scores if row["label"] in case.either]
        elif only is not None:
            pairs.append(case.of(only))
        if case.own:
            rows += [row for row in case.scores if row["label"] in case.own]
        elif only is not None:
            rows.append(case.of(only))
        else:
            empty.append(name)
    return rows, pairs, empty


def _warn_of_others(scored: dict[str, _Scored], against: Any) -> None:
    """Warn of labels that only the other masks have: they decide the paired comparison, and are in no table."""
    alone = sorted({label for case in scored.values() for label in case.either - case.own})
    if alone:
        warnings.warn(
            f"label {', '.join(map(str, alone))} occurs in some masks of {against}, and there neither in the truth nor in the "
            "other masks: the paired comparison counts it as 0 against 1",
            stacklevel=3,
        )


def _check_partners(predicted: dict[str, Path], wanted: dict[str, Path], folder: Any) -> None:
    lonely = sorted(set(predicted) - set(wanted))
    if lonely:
        raise FileNotFoundError(
            f"{len(lonely)} masks have no mask of the same name ({', '.join(lonely[:5])}); give the masks in "
            f"{folder} and the labels the same file names"
        )
