"""Masks against the truth: a row per case, a table per stratum, and one set of masks against another."""

from __future__ import annotations

import csv
import io
import json
import math
import os
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.layouts import niftis, stem
from ctssl.files.atomic import write_whole
from ctssl.files.text import read_table
from ctssl.metrics import dsc, hd95, lesions, nsd, volume_ml
from ctssl.volume.grids import resample, sheared, working_grid
from ctssl.volume.volume import Volume, read

METRICS = ("dsc", "hd95_mm", "nsd", "volume_error_ml")
FEWEST = 6  # patients below which a paired test is not made
TAKEN = {
    "case",
    "label",
    "patient",
    "model",
    "shift",
    "severity",
    "dsc",
    "nsd",
    "hd95_mm",
    "lesions",
    "lesions_found",
    "false_positives",
    "volume_ml",
    "volume_error_ml",
    "best_dsc",
    "unchanged",
}


@dataclass(frozen=True)
class Evaluation:
    """`cases`: one row per case and label. `strata`: one row per stratum. `paired`: against the other masks, if given.
    `missing`: true masks without a prediction, which do not count."""

    cases: list[dict[str, Any]]
    strata: list[dict[str, Any]]
    paired: list[dict[str, Any]]
    tolerance_mm: float
    missing: list[str] = field(default_factory=list)

    def save(self, folder: str | os.PathLike, *, overwrite: bool = False) -> Path:
        """`cases.csv`, `report.json`, `report.md` and, with paired results, `paired.png`. Raises `FileExistsError` where one of
        them is there, unless it may be overwritten."""
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
        table: CSV with a row per case: `id` or `case` as the files are named (or `image`, whose file's name it is),
            `patient` if several cases share one, and the columns that `by` names.
        by: columns of the table; every value becomes a stratum of its own.
        against: a second folder of predictions for the same cases.
        tolerance_mm: of the surface Dice.

    A true mask without a prediction does not count and is listed in `missing`. Raises `ValueError` or `FileNotFoundError` for
    predictions without a true mask, and for masks that do not fit.
    """
    from tqdm import tqdm

    truth, found = niftis(Path(labels)), niftis(Path(predictions))
    other = niftis(Path(against)) if against is not None else {}
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


def read_mask(path: Path) -> Volume:
    """A mask from a file. Raises `ValueError` for a map of probabilities."""
    mask = read(path)
    if (mask.array != np.round(mask.array)).any():
        raise ValueError(
            f"{path} holds fractions, so it is a map of probabilities and no mask: give masks of whole numbers"
        )
    return mask


def labels_of(*masks: Volume) -> list[int]:
    """Labels that occur in any of the masks; 1 if none does."""
    return sorted(set().union(*map(labels_in, masks))) or [1]


def labels_in(mask: Volume) -> set[int]:
    """Every label that occurs, without the background."""
    return {int(v) for v in np.unique(mask.array) if v > 0}


def same_grid(one: Volume, two: Volume, *, name: str) -> None:
    """Raise `ValueError`, saying of whom (`name`) and what differs, unless both masks have the same voxels in the same places."""
    if one.shape == two.shape and np.allclose(one.affine, two.affine, atol=0.1 * min(two.spacing_mm)):
        return
    if one.shape != two.shape:
        what = f"{' x '.join(map(str, one.shape))} and {' x '.join(map(str, two.shape))} voxels"
    else:
        ends = np.array([[0, 0, 0, 1], [*(n - 1 for n in two.shape), 1]]).T
        off = float(np.linalg.norm(((one.affine - two.affine) @ ends)[:3], axis=0).max())
        turned = not np.allclose(
            np.sign(np.round(one.affine[:3, :3], 3)), np.sign(np.round(two.affine[:3, :3], 3))
        )
        what = f"their affines {'turn the axes otherwise' if turned else 'differ'}, corners lie up to {off:.1f} mm apart"
    raise ValueError(
        f"{name}: prediction and truth are on different grids ({what}); write the prediction on the scan's own grid"
    )


def score_masks(
    one: Volume, two: Volume, *, name: str, tolerance_mm: float | None, labels: list[int] | None = None
) -> list[dict[str, Any]]:
    """A row per label of `labels`, or that occurs in either mask, the predicted or the true one (label 1 if none does).

    `tolerance_mm`: of the NSD. None: no distances (HD95 and NSD are NaN), which take most of the time.
    """
    same_grid(one, two, name=name)
    one, two = squared(one), squared(two)
    rows = []
    for value in labels or labels_of(one, two):
        p, t = one.array == value, two.array == value
        size = {"spacing_mm": two.spacing_mm}
        hit, all_, false = lesions(p, t)
        far = near = math.nan
        if tolerance_mm is not None:
            far, near = hd95(p, t, **size), nsd(p, t, **size, tolerance_mm=tolerance_mm)
        rows.append(
            {
                "case": name,
                "label": value,
                "dsc": dsc(p, t),
                "hd95_mm": far,
                "nsd": near,
                "lesions_found": hit,
                "lesions": all_,
                "false_positives": false,
                "volume_ml": volume_ml(t, **size),
                "volume_error_ml": volume_ml(p, **size) - volume_ml(t, **size),
            }
        )
    return rows


def squared(mask: Volume) -> Volume:
    """The mask on a grid with right angles, on which distances are those along the axes: itself, unless it is sheared (gantry
    tilt)."""
    if not sheared(mask.affine):
        return mask
    shape, affine = working_grid(mask, min(mask.spacing_mm))
    labels = np.zeros(shape, np.uint8)
    for value in np.unique(mask.array[mask.array > 0]):
        labels[resample(mask.array == value, mask.affine, shape, affine) > 0.5] = value
    return replace(mask, array=labels, affine=affine)


def summary(rows: list[dict[str, Any]], column: str, value: str) -> dict[str, Any]:
    """One row of the strata table, over all labels of its cases."""
    result: dict[str, Any] = {
        "stratum": f"{column} {value}".strip(),
        "cases": len({row["case"] for row in rows}),
    }
    for key in ("dsc", "nsd"):
        low, high = interval(rows, key)
        values = [row[key] for row in rows]
        result |= {
            key: float(np.mean(values)),
            f"{key}_median": float(np.median(values)),
            f"{key}_low": low,
            f"{key}_high": high,
        }
    distances = [row["hd95_mm"] for row in rows if not math.isnan(row["hd95_mm"])]
    result["hd95_mm_median"] = float(np.median(distances)) if distances else math.nan
    result["without_hd95"] = len(rows) - len(distances)
    count = sum(row["lesions"] for row in rows)
    result["lesion_sensitivity"] = sum(row["lesions_found"] for row in rows) / count if count else math.nan
    result["false_positives_per_scan"] = sum(row["false_positives"] for row in rows) / len(
        {row["case"] for row in rows}
    )
    if result["cases"] >= FEWEST:
        from scipy.stats import spearmanr

        sizes, scores = [row["volume_ml"] for row in rows], [row["dsc"] for row in rows]
        varied = len(set(sizes)) > 1 and len(set(scores)) > 1
        result["dsc_volume_rank_correlation"] = float(spearmanr(sizes, scores)[0]) if varied else math.nan  # type: ignore[arg-type]
    return result


def interval(rows: list[dict[str, Any]], key: str, *, draws: int = 2000) -> tuple[float, float]:
    """95% bootstrap interval of the mean; whole patients are drawn, not cases."""
    patients: dict[str, list[float]] = {}
    for row in rows:
        patients.setdefault(str(row["patient"]), []).append(row[key])
    sums = np.array([[sum(v), len(v)] for v in patients.values()])
    chosen = sums[np.random.default_rng(0).integers(len(sums), size=(draws, len(sums)))].sum(1)
    means = chosen[:, 0] / chosen[:, 1]
    return float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def paired(
    rows: list[dict[str, Any]], metrics: tuple[str, ...] = ("dsc", "nsd", "hd95_mm")
) -> list[dict[str, Any]]:
    """Each metric of these masks against the others': mean difference, rank-biserial effect, Holm-corrected p. The unit is a
    patient: labels and scans of one are averaged first. `undefined`: rows that do not count, as one of the two has no value (HD95
    of an empty mask: a miss)."""
    from scipy.stats import rankdata, wilcoxon

    results = []
    for key in metrics:
        patients: dict[str, list[float]] = {}
        undefined = 0
        for row in rows:
            if math.isfinite(one := row[key] - row[f"other_{key}"]):
                patients.setdefault(str(row["patient"]), []).append(one)
            else:
                undefined += 1
        away = np.array([np.mean(each) for each in patients.values()])
        moved = away[away != 0]
        ranks = rankdata(np.abs(moved))
        effect = float((ranks * np.sign(moved)).sum() / ranks.sum()) if len(moved) else 0.0
        p = float(wilcoxon(away).pvalue) if len(away) >= FEWEST and len(moved) else math.nan  # type: ignore[union-attr]
        results.append(
            {
                "metric": key,
                "patients": len(away),
                "undefined": undefined,
                "difference": float(away.mean()) if len(away) else math.nan,
                "rank_biserial": effect,
                "p": p,
            }
        )
    for row, corrected in zip(results, holm([row["p"] for row in results]), strict=True):
        row["p_holm"] = corrected
    return results


def holm(values: list[float]) -> list[float]:
    """p-values corrected by Holm's step-down; NaN (no test was made) stays and does not count."""
    order = [i for i in np.argsort(values) if not math.isnan(values[i])]
    corrected, highest = [math.nan] * len(values), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, values[i] * (len(order) - rank)))
        corrected[i] = highest
    return corrected


def _complete(found: dict[str, Path], wanted: dict[str, Path], folder: Any) -> None:
    lonely = sorted(set(found) - set(wanted))
    if lonely:
        raise FileNotFoundError(
            f"{len(lonely)} masks have no partner of their name ({', '.join(lonely[:5])}); the masks of "
            f"{folder} and of the labels must be called the same"
        )


def facts_of(path: Path, by: tuple[str, ...], names: list[str]) -> dict[str, dict[str, str]]:
    """For each case what the table says in the columns `by`, and its patient."""
    columns, listed = read_table(path)
    key = next((c for c in ("id", "case", "image") if c in columns), None)
    missing = [c for c in by if c not in columns]
    if key is None or missing:
        raise ValueError(
            f"{path} has the columns {columns}; needed: id, case or image"
            + (f", and {missing}" if missing else "")
        )
    taken = [c for c in by if c in TAKEN]
    if taken:
        raise ValueError(
            f"{path}: a stratum cannot be called {', '.join(taken)}, as the results have such a column of their "
            "own; rename the column of the table"
        )

    def name_of(row: dict[str, str]) -> str:
        return row[key] if key != "image" else stem(Path(row[key])).removesuffix("_0000")

    rows = {name_of(row): row for _, row in listed}
    doubled = [name for name, count in Counter(name_of(row) for _, row in listed).items() if count > 1]
    if doubled:
        raise ValueError(f"{path} has more than one row for {', '.join(doubled[:5])}; keep one of each")
    absent = [name for name in names if name not in rows]
    if absent:
        raise ValueError(f"{path} has no row for {', '.join(absent[:5])} ({len(absent)} cases)")
    return {
        name: {
            column: rows[name][column]
            for column in (*by, *(["patient"] if rows[name].get("patient") else []))
        }
        for name in names
    }


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """Rows with the same keys; NaN is a dash."""

    def cell(value: Any) -> str:
        return (
            "-"
            if isinstance(value, float) and math.isnan(value)
            else f"{value:.3g}"
            if isinstance(value, float)
            else str(value)
        )

    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    return (
        "\n".join(lines + ["| " + " | ".join(cell(row.get(c, "")) for c in columns) + " |" for row in rows])
        + "\n"
    )


def as_plain(value: Any) -> Any:
    """NaN as null: JSON has no word for it."""
    if isinstance(value, dict):
        return {key: as_plain(v) for key, v in value.items()}
    if isinstance(value, list):
        return [as_plain(v) for v in value]
    return None if isinstance(value, float) and math.isnan(value) else value
