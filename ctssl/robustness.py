"""A segmenter against CT acquisition shifts: scores against severity, strata, and pairs of reconstructions."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.curves import (
    CLEAN,
    Row,
    against_clean,
    against_model,
    biggest_fall,
    corrected,
    curve,
    overview,
    picture,
)
from ctssl.datasets.case import Case, read_case
from ctssl.datasets.layouts import find_cases
from ctssl.evaluation.scores import TAKEN, labels_of, score_masks
from ctssl.evaluation.statistics import summary
from ctssl.evaluation.tables import as_plain, facts_of, markdown_table
from ctssl.files.atomic import write_whole
from ctssl.files.text import read_json
from ctssl.shifts import REVISION, SHIFTS, check_shift, shift
from ctssl.shifts.stamps import content, differs, named, stamp_in, stamp_of, stamped
from ctssl.sources import Source, complete, find_sources, known_labels
from ctssl.volume.volume import AIR_HU, Volume, read

EXPLAINED = """{head}. DSC, HD95 in mm, NSD at {tolerance:g} mm; severity 0 is the scan as it is, `ctssl shift --help` tells what
1 to 5 are. `area` is the mean height of a case's curve from severity 0 to the highest, so it loses less than the worst severity
does; `dsc_lost` is clean minus area; intervals are 95% bootstrap over patients. `worst_dsc` is the lowest mean of a severity,
`worst_case` the case that falls most at any one. Differences are first minus second (shifted against clean: area minus clean);
Wilcoxon signed-rank, two-sided, with the rank-biserial effect (1: every patient the same way), Holm over each table; no p below 6
patients, whose scans and labels are averaged first. `undefined`: cases without a value on one side (HD95 of an empty mask), which
do not count: misses show in DSC and NSD. Pairs: `covered` is the share of the first scan that the second covers,
`volume_difference` is relative to the mean of both, concordance is Lin's, of volumes over pairs or of the features of a pair,
cosine is that of its features; masks that agree need not be right.
"""
TAKING = ("thickness", "truncation")
"""Shifts that may leave a scan as it is, or cut off what is labelled."""


@dataclass(frozen=True)
class Robustness:
    """`rows`: one per model, case, shift, severity and label. The other tables follow from them; see `report.md`."""

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
    notes: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """Everything, for JSON: what is not defined (NaN) is null."""
        return as_plain(asdict(self))

    def markdown(self) -> str:
        """All tables but the rows."""
        cases = {row["case"] for row in self.rows}
        head = f"{', '.join(self.models)}; {len(cases)} cases of {len({row['patient'] for row in self.rows})} patients"
        text = EXPLAINED.format(tolerance=self.tolerance_mm, head=head if cases else ", ".join(self.models))
        text += "".join(f"\n- {note}" for note in self.notes) + "\n"
        if self.rows:
            text += "\n![DSC against severity](curves.png)\n"
        titles = {
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
        """`report.json`, `report.md`, `rows.csv` and `curves.png`, each whole or not at all."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(folder / "report.json", json.dumps(self.plain(), indent=1) + "\n")
        write_whole(folder / "report.md", self.markdown())
        for name in ("rows.csv", "curves.png"):  # of an earlier run
            (folder / name).unlink(missing_ok=True)
        if self.rows:
            columns = list(dict.fromkeys(key for row in self.rows for key in row))
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, columns)
            writer.writeheader()
            writer.writerows(self.rows)
            write_whole(folder / "rows.csv", text.getvalue())
            write_whole(
                folder / "curves.png", lambda part: picture(self.rows, self.models, self.shifts, part)
            )
        return folder


def measure_robustness(
    data: str | os.PathLike | None = None,
    *,
    out: str | os.PathLike,
    model: Any = None,
    against: Any = None,
    predictions: str | os.PathLike | None = None,
    images: str | os.PathLike | None = None,
    labels: str | os.PathLike | None = None,
    roi: str | None = None,
    cases: list[str] | None = None,
    shifts: tuple[str, ...] = tuple(SHIFTS),
    severities: tuple[int, ...] = (1, 3, 5),
    by: tuple[str, ...] = (),
    table: str | os.PathLike | None = None,
    pairs: str | os.PathLike | None = None,
    scans: str | os.PathLike | None = None,
    seed: int = 0,
    tolerance_mm: float = 2.0,
    overlays: int = 3,
    device: str = "cpu",
    overwrite: bool = False,
    progress: bool = False,
) -> Robustness:
    """Segment labelled scans as they are and under every shift, score the masks, and write a report folder.

    Args:
        data: labelled scans in a layout that `ctssl.datasets.find_cases` knows; or `images` and `labels` apart; or neither, for
            `pairs` alone. `roi` as for `ctssl.finetune`.
        out: folder for the report. Each score is kept there at once: the same call goes on where it stopped.
        model: a segmenter: name, folder, repository, or the object. `against`: a second one, compared case by case.
        predictions: masks that another tool made of the scans that `ctssl shift DATA OUT --every` writes:
            `clean/CASE.nii.gz` and `SHIFT-SEVERITY/CASE.nii.gz`. Alone, or beside a model, which it is compared with.
        cases: names of the cases to use, those that no model was trained on. None: all.
        shifts, severities: what to try, each with each.
        by, table: columns of a CSV with a row per case (or of the data's own), for strata of the clean scans.
        pairs: CSV with the columns `first` and `second`, two reconstructions of one acquisition each.
        scans: folder that keeps the shifted scans (of one seed), by the names above, for other models and tools.
        overlays: of so many shifts, those that cost most DSC, a picture of the case that loses most, clean and shifted.
        overwrite: measure again what an earlier call with other settings left in `out`.

    Raises `ValueError` or `FileNotFoundError` for what does not fit, before any work.
    """
    out = Path(out)
    shifts, by, cases = several(shifts), several(by), None if cases is None else list(several(cases))
    severities = (severities,) if isinstance(severities, int) else tuple(severities)
    if not tolerance_mm > 0:
        raise ValueError(f"a tolerance of {tolerance_mm} mm: give one above 0")
    for name in shifts:
        for severity in severities:
            check_shift(name, severity)
    sources = find_sources(model, against, predictions, device)
    wanted = chosen_cases(data, images, labels, roi, cases) if data is not None or images is not None else []
    if not wanted and pairs is None:
        raise ValueError(
            "nothing to measure: give labelled scans (DATA), or --pairs with a table of scan pairs"
        )
    if taken := sorted(set(by) & TAKEN):
        raise ValueError(
            f"a stratum cannot be called {', '.join(taken)}, as the results have such a column of their own; rename "
            "the column of the table"
        )
    if table is None and any(column not in case.facts for column in by for case in wanted):
        raise ValueError(f"by={by} needs a table with these columns (--table cases.csv)")
    if predictions is not None and model is None and pairs is not None:
        raise ValueError(
            "--pairs needs a --model that segments both scans of a pair; masks of another tool cannot be paired"
        )
    if wanted and not (shifts and severities):
        raise ValueError("give at least one shift and one severity")
    facts = facts_of(Path(table), by, [case.name for case in wanted]) if table is not None and wanted else {}
    places = [(CLEAN, 0), *((name, int(s)) for name in shifts for s in sorted(set(severities)))]
    doubts: list[str] = []
    if predictions is not None:
        complete(Path(predictions), wanted, places)
        doubts = known_labels(Path(predictions), wanted, places)
    if pairs is not None:
        from ctssl.agreement import find_pairs

        find_pairs(Path(pairs))
    prepare_folder(out)
    rows = measure(
        sources,
        wanted,
        places,
        out / "rows",
        scans=Path(scans) if scans is not None else None,
        seed=seed,
        tolerance_mm=tolerance_mm,
        overwrite=overwrite,
        progress=progress,
    )
    rows = [{**row, **facts.get(row["case"], {})} for row in rows]
    found = tables(rows, [source.name for source in sources], list(dict.fromkeys(shifts)), by, tolerance_mm)
    found = replace(found, notes=[*notes(sources, wanted), *doubts, *left(rows), *power(found)])
    if pairs is not None:
        found = with_pairs(found, sources, Path(pairs), out / "pairs", overwrite=overwrite, progress=progress)
    found.save(out)
    if rows and overlays:
        draw(sources[0], wanted, rows, overlays, out, seed)
    return found


def several(names: str | Iterable[str]) -> tuple[str, ...]:
    """One name counts as a list of one."""
    return (names,) if isinstance(names, str) else tuple(names)


def chosen_cases(data: Any, images: Any, labels: Any, roi: str | None, names: list[str] | None) -> list[Case]:
    """The cases to judge on."""
    found = find_cases(data, images=images, labels=labels, roi=roi).cases
    unknown = set(names or []) - {case.name for case in found}
    if unknown:
        raise ValueError(
            f"no case is called {', '.join(sorted(unknown))}; they are called {found[0].name!r} and so on"
        )
    return [case for case in found if names is None or case.name in names]


def prepare_folder(out: Path) -> None:
    """Refuse a folder that holds something else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "rows").is_dir())):
        raise FileExistsError(f"{out} holds something else than a robustness report; choose another --out")
    (out / "rows").mkdir(parents=True, exist_ok=True)


def measure(
    sources: list[Source],
    cases: list[Case],
    places: list[tuple[str, int]],
    folder: Path,
    *,
    scans: Path | None,
    seed: int,
    tolerance_mm: float | None,
    overwrite: bool,
    progress: bool,
) -> list[Row]:
    """Rows of every source, case and place: those in `folder`, and the others measured and kept there. `tolerance_mm`: None for
    no distances."""
    from tqdm import tqdm

    rows: dict[str, list[Row]] = {source.name: [] for source in sources}
    bar = tqdm(total=len(cases) * len(places), desc="shifts", disable=not progress or not cases)
    for case in cases:
        scan, truth = read_case(case)
        voxels = [content(scan), content(truth)]
        for place in places:
            shifted = None
            for number, source in enumerate(sources):
                path = folder / str(number) / f"{case.name}--{named(*place)}.json"
                facts = {
                    "source": source.key(case.name, named(*place)),
                    "seed": seed,
                    "tolerance_mm": tolerance_mm,
                    "case": voxels,
                    "shifts": REVISION,
                }
                kept = kept_rows(path, facts, overwrite)
                if kept is None:
                    if shifted is None and (source.model is not None or place[0] in TAKING):
                        file = scans / named(*place) / f"{case.name}.nii.gz" if scans else None
                        shifted = shifted_scan(
                            scan, place, seed, file, stamp_of(named(*place), seed, voxels[0])
                        )
                    seen = scan if shifted is None else shifted
                    mask = source.mask(seen, case.name, named(*place))
                    kept = score_masks(
                        mask, truth, name=case.name, tolerance_mm=tolerance_mm, labels=labels_of(truth)
                    )
                    kept = [{**row, **left_to_see(scan, seen, truth, row["label"], place[0])} for row in kept]
                    keep_rows(path, facts, kept)
                where = {
                    "model": source.name,
                    "patient": case.patient or case.name,
                    "shift": place[0],
                    "severity": place[1],
                }
                rows[source.name] += [{**case.facts, **where, **row} for row in kept]
            bar.update()
    bar.close()
    return [row for source in sources for row in rows[source.name]]


def left_to_see(scan: Volume, seen: Volume, truth: Volume, label: int, name: str) -> Row:
    """`best_dsc`: of a mask that is right wherever a truncated scan still shows something. `unchanged`: the shift did nothing."""
    best = 1.0
    if name == "truncation":
        true = truth.array == label
        there = int((true & ~((seen.array == AIR_HU) & (scan.array > AIR_HU))).sum())
        best = 2 * there / (there + int(true.sum())) if there else float(not true.any())
    return {"best_dsc": best, "unchanged": name in TAKING and np.array_equal(seen.array, scan.array)}


def shifted_scan(
    scan: Volume, place: tuple[str, int], seed: int, file: Path | None = None, stamp: str = ""
) -> Volume:
    """The scan under a shift, from `file` if it was kept there, else kept there; the header's `stamp` says of what."""
    if place[0] == CLEAN:
        return scan
    if file and file.exists():
        kept = read(file)
        if why := differs(stamp_in(kept), stamp):
            raise ValueError(f"{file} is not this shifted scan: {why}; choose another --scans")
        return kept
    found = shift(scan, place[0], severity=place[1], seed=seed)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        stamped(found, stamp).save(file, overwrite=True)  # another process may have been as fast
    return found


def kept_rows(path: Path, facts: dict[str, Any], overwrite: bool) -> list[Row] | None:
    """What an earlier run kept; None where it has to be measured."""
    if not path.exists():
        return None
    kept = read_json(path)
    if not isinstance(kept, dict) or not isinstance(kept.get("rows"), list):
        raise ValueError(f"{path} is damaged: delete it, and it is measured again")
    if kept.get("facts") != facts:
        if overwrite:
            return None
        raise ValueError(
            f"{path} was measured with another model, scan, mask, seed or tolerance, or by another version of the "
            "shifts; choose another --out, or add --overwrite"
        )
    return [
        {key: float("nan") if value is None else value for key, value in row.items()} for row in kept["rows"]
    ]


def keep_rows(path: Path, facts: dict[str, Any], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(as_plain({"facts": facts, "rows": rows})) + "\n")


def notes(sources: list[Source], cases: list[Case]) -> list[str]:
    """What a reader must know."""
    found = []
    for source in sources:
        seen = [case.name for case in cases if case.name in source.trained_on]
        if seen:
            found.append(
                f"{source.name} was trained on {len(seen)} of these {len(cases)} cases ({', '.join(seen[:3])} ...): "
                "choose held-out ones (--cases)"
            )
    return found


def left(rows: list[Row]) -> list[str]:
    """Shifts that leave scans as they are, and what a shift cuts off."""
    found, first = [], rows[0]["model"] if rows else ""
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
    """How small a corrected p can be at all."""
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
    """Every table that follows from the rows."""
    if not rows:
        return Robustness([], models, shifts, tolerance_mm)
    strata = []
    for model in models if by else []:
        clean = [row for row in rows if row["model"] == model and row["shift"] == CLEAN]
        for column in by:
            for value in sorted({str(row[column]) for row in clean}):
                chosen = [row for row in clean if str(row[column]) == value]
                strata.append({"model": model, **summary(chosen, column, value)})
    return Robustness(
        rows,
        models,
        shifts,
        tolerance_mm,
        overview(rows, models, shifts),
        [point for model in models for name in shifts for point in curve(rows, model, name)],
        strata,
        corrected([row for model in models for row in against_clean(rows, model, shifts)]),
        corrected([row for other in models[1:] for row in against_model(rows, models[0], other, shifts)]),
    )


def with_pairs(
    found: Robustness, sources: list[Source], table: Path, folder: Path, *, overwrite: bool, progress: bool
) -> Robustness:
    """The same with the agreement of paired scans, each kept in `folder`; folders of masks have no pairs."""
    from tqdm import tqdm

    from ctssl.agreement import agreement, find_pairs, summarise

    rows, sums = [], []
    for number, source in enumerate(sources):
        if source.model is None:
            continue
        mine: list[Row] = []
        for pair in tqdm(find_pairs(table), desc="pairs", disable=not progress):
            name, one, two = pair[0], read(pair[1]), read(pair[2])
            facts = {"source": source.key("", ""), "pair": [name, content(one), content(two)]}
            path = (
                folder / str(number) / f"{hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]}.json"
            )
            kept = kept_rows(path, facts, overwrite)
            if kept is None:
                kept = agreement(source.model, [(name, one, two)])
                keep_rows(path, facts, kept)
            mine += kept
        rows += [{"model": source.name, **row} for row in mine]
        sums.append({"model": source.name, **summarise(mine)})
    return replace(found, pairs=rows, pairs_summary=sums)


def draw(source: Source, cases: list[Case], rows: list[Row], count: int, out: Path, seed: int) -> None:
    """Overlays of the falls in DSC that are biggest, one of each shift: the mask in colour, the truth as a line."""
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
            path = out / "overlays" / f"{case.name}--{named(name, severity)}.png"
            overlay(
                seen,
                source.mask(seen, case.name, named(name, severity)),
                path,
                outline=truth,
                title=f"{case.name}, {named(name, severity)}: DSC {score:.2f}",
            )
