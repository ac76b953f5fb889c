"""Two folders of masks to a report: a row per case, a table per stratum, one set of masks against another."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ctssl.datasets.scans import require_scans
from ctssl.evaluation.scores import METRICS, labels_of, read_mask, score_masks
from ctssl.evaluation.statistics import FEWEST, paired, summary
from ctssl.evaluation.tables import as_plain, facts_of, markdown_table
from ctssl.files.atomic import write_whole


@dataclass(frozen=True)
class Evaluation:
    """`cases`: one row per case and label. `strata`: one row per stratum. `paired`: against the other masks,
    if given. `missing`: true masks without a prediction, which do not count."""

    cases: list[dict[str, Any]]
    strata: list[dict[str, Any]]
    paired: list[dict[str, Any]]
    tolerance_mm: float
    missing: list[str] = field(default_factory=list)

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """`cases.csv`, `report.json`, `report.md` and, with paired results, `paired.png`. Raises
        `FileExistsError` where one of them is there, unless it may be overwritten."""
        folder = Path(folder)
        there = [
            name
            for name in ("cases.csv", "report.json", "report.md", "paired.png")
            if (folder / name).exists()
        ]
        if there and not overwrite:
            raise FileExistsError(
                f"{folder} holds a {there[0]}; choose another folder, or overwrite it on purpose"
            )
        folder.mkdir(parents=True, exist_ok=True)
        rows = io.StringIO(newline="")
        writer = csv.DictWriter(rows, list(self.cases[0]))
        writer.writeheader()
        writer.writerows(self.cases)
        write_whole(folder / "cases.csv", rows.getvalue())
        write_whole(folder / "report.json", json.dumps(self.plain(), indent=1) + "\n")
        write_whole(folder / "report.md", self.markdown())
        if self.paired:
            write_whole(folder / "paired.png", self._picture)
        return folder

    def plain(self) -> dict[str, Any]:
        """Everything, for JSON: what is not defined (NaN) is null."""
        return as_plain(asdict(self))

    def markdown(self) -> str:
        """The strata, and the paired comparison, as tables."""
        text = f"DSC, HD95 in mm, NSD at {self.tolerance_mm:g} mm; means with 95% bootstrap intervals over patients.\n\n"
        if self.missing:
            shown = ", ".join(self.missing[:5]) + (" ..." if len(self.missing) > 5 else "")
            text += f"**{len(self.missing)} true masks have no prediction and do not count: {shown}**\n\n"
        text += markdown_table(self.strata)
        if self.paired:
            text += (
                "\nPaired by patient, first minus second; Wilcoxon signed-rank, two-sided, Holm over the rows; no p below "
                f"{FEWEST} patients. `undefined`: rows without a value on one side (HD95 of an empty mask), which do not count: "
                "misses show in DSC and NSD.\n\n"
            )
            text += markdown_table(self.paired)
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
            xticklabels=["the other", "this"],
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
    progress: bool = False,
) -> Evaluation:
    """Compare masks of the same names in two folders.

    Args:
        table: CSV with a row per case: `id` or `case` as the files are named (or `image`, whose file's name
            it is), `patient` if several cases share one, and the columns that `by` names.
        by: columns of the table; every value becomes a stratum of its own.
        against: a second folder of predictions for the same cases.
        tolerance_mm: of the surface Dice.

    A true mask without a prediction does not count and is listed in `missing`. Raises `ValueError` or
    `FileNotFoundError` for predictions without a true mask, and for masks that do not fit.
    """
    from tqdm import tqdm

    truth, found = (require_scans(Path(folder), unlabelled=False) for folder in (labels, predictions))
    other = require_scans(Path(against), unlabelled=False) if against is not None else {}
    _complete(found, truth, predictions)
    if against is not None:
        _complete(found, other, against)
    facts = facts_of(Path(table), by, sorted(found)) if table is not None else {}
    if by and table is None:
        raise ValueError(f"by={by} needs a table with these columns (--table cases.csv)")
    rows: list[dict[str, Any]] = []
    pairs: list[dict[str, Any]] = []  # also of labels that the other masks alone have
    for name in tqdm(sorted(found), desc="cases", disable=not progress):
        true, mine = read_mask(truth[name]), read_mask(found[name])
        twin = read_mask(other[name]) if against is not None else None
        own = labels_of(true, mine)
        wanted = own if twin is None else labels_of(true, mine, twin)
        found_rows = score_masks(mine, true, name=name, tolerance_mm=tolerance_mm, labels=wanted)
        if twin is not None:
            others = score_masks(twin, true, name=name, tolerance_mm=tolerance_mm, labels=wanted)
            for row, second in zip(found_rows, others, strict=True):
                row |= {f"other_{key}": second[key] for key in METRICS}
        found_rows = [row | {"patient": name} | facts.get(name, {}) for row in found_rows]
        rows += [row for row in found_rows if row["label"] in own]
        pairs += found_rows
    strata = [summary(rows, "all", "")]
    for column in by:
        for value in sorted({str(row[column]) for row in rows}):
            strata.append(summary([row for row in rows if str(row[column]) == value], column, value))
    missing = sorted(set(truth) - set(found))
    return Evaluation(rows, strata, paired(pairs) if against is not None else [], tolerance_mm, missing)


def _complete(found: dict[str, Path], wanted: dict[str, Path], folder: Any) -> None:
    lonely = sorted(set(found) - set(wanted))
    if lonely:
        raise FileNotFoundError(
            f"{len(lonely)} masks have no partner of their name ({', '.join(lonely[:5])}); the masks of "
            f"{folder} and of the labels must be called the same"
        )
