"""A segmenter against CT acquisition shifts: scores against severity, strata, and pairs of reconstructions."""

from __future__ import annotations

import csv
import io
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.curves import CLEAN, Row, against_clean, against_model, biggest_fall, corrected, curve, overview, picture
from ctssl.datasets import Case, find_cases, read_case, voxel_hash
from ctssl.evaluation import TAKEN, as_plain, facts_of, markdown_table, score_masks, summary
from ctssl.shifts import SHIFTS, check_shift, shift
from ctssl.sources import Source, complete, find_sources, known_labels, named, stamp_of, stamped
from ctssl.tables import read_json
from ctssl.volume import Volume, read
from ctssl.writing import write_whole

EXPLAINED = (
    "DSC, HD95 in mm, NSD at {tolerance:g} mm; severity 0 is the scan as it is. `area` is the mean height of a case's curve over "
    "severity; intervals are 95% bootstrap over patients. Differences are first minus second; Wilcoxon signed-rank, two-sided, "
    "Holm over each table; no p below 6 patients, whose scans and labels are averaged first. `undefined`: cases without a value "
    "on one side (HD95 of an empty mask), which do not count: misses show in DSC and NSD.\n"
)


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
        text = EXPLAINED.format(tolerance=self.tolerance_mm) + "".join(f"\n- {note}" for note in self.notes) + "\n"
        titles = {"overview": "Each shift", "against_model": "One model against another",
                  "against_clean": "Shifted against clean", "strata": "Strata, clean scans", "curves": "Scores by severity",
                  "pairs_summary": "Two reconstructions of one acquisition", "pairs": "Each pair"}  # fmt: skip
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
        if self.rows:
            columns = list(dict.fromkeys(key for row in self.rows for key in row))
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, columns)
            writer.writeheader()
            writer.writerows(self.rows)
            write_whole(folder / "rows.csv", text.getvalue())
            write_whole(folder / "curves.png", lambda part: picture(self.rows, self.models, self.shifts, part))
        return folder


def measure_robustness(data: str | os.PathLike | None = None, *, out: str | os.PathLike, model: Any = None,
                       against: Any = None, predictions: str | os.PathLike | None = None,
                       images: str | os.PathLike | None = None, labels: str | os.PathLike | None = None,
                       roi: str | None = None, cases: list[str] | None = None,
                       shifts: tuple[str, ...] = tuple(SHIFTS), severities: tuple[int, ...] = (1, 3, 5),
                       by: tuple[str, ...] = (), table: str | os.PathLike | None = None,
                       pairs: str | os.PathLike | None = None, scans: str | os.PathLike | None = None, seed: int = 0,
                       tolerance_mm: float = 2.0, overlays: int = 3, device: str = "cpu", overwrite: bool = False,
                       progress: bool = False) -> Robustness:  # fmt: skip
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
        overlays: pictures of the cases that lose most.
        overwrite: measure again what an earlier call with other settings left in `out`.

    Raises `ValueError` or `FileNotFoundError` for what does not fit, before any work.
    """
    out = Path(out)
    if not tolerance_mm > 0:
        raise ValueError(f"a tolerance of {tolerance_mm} mm: give one above 0")
    for name in shifts:
        for severity in severities:
            check_shift(name, severity)
    sources = find_sources(model, against, predictions, device)
    wanted = chosen_cases(data, images, labels, roi, cases) if data is not None or images is not None else []
    if not wanted and pairs is None:
        raise ValueError("nothing to measure: give labelled scans (DATA), or --pairs with a table of scan pairs")
    if taken := sorted(set(by) & TAKEN):
        raise ValueError(f"a stratum cannot be called {', '.join(taken)}, as the results have such a column of their own; rename "
                         "the column of the table")  # fmt: skip
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
        doubts = known_labels(Path(predictions), wanted)
    if pairs is not None:
        from ctssl.agreement import find_pairs

        find_pairs(Path(pairs))
    prepare_folder(out, overwrite)
    rows = measure(sources, wanted, places, out / "rows", scans=Path(scans) if scans is not None else None, seed=seed,
                   tolerance_mm=tolerance_mm, overwrite=overwrite, progress=progress)  # fmt: skip
    rows = [{**row, **facts.get(row["case"], {})} for row in rows]
    found = tables(rows, [source.name for source in sources], list(dict.fromkeys(shifts)), by, tolerance_mm)
    found = replace(found, notes=[*notes(sources, wanted), *doubts])
    if pairs is not None:
        found = with_pairs(found, sources, Path(pairs), progress=progress)
    found.save(out)
    if rows and overlays:
        draw(sources[0], wanted, rows, overlays, out, seed)
    return found


def chosen_cases(data: Any, images: Any, labels: Any, roi: str | None, names: list[str] | None) -> list[Case]:
    """The cases to judge on."""
    found = find_cases(data, images=images, labels=labels, roi=roi).cases
    unknown = set(names or []) - {case.name for case in found}
    if unknown:
        raise ValueError(f"no case is called {', '.join(sorted(unknown))}; they are called {found[0].name!r} and so on")
    return [case for case in found if names is None or case.name in names]


def prepare_folder(out: Path, overwrite: bool) -> None:
    """Refuse a folder that holds something else."""
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "rows").is_dir() and not overwrite)):
        raise FileExistsError(f"{out} holds something else than a robustness report; choose another --out")
    (out / "rows").mkdir(parents=True, exist_ok=True)


def measure(sources: list[Source], cases: list[Case], places: list[tuple[str, int]], folder: Path, *, scans: Path | None,
            seed: int, tolerance_mm: float | None, overwrite: bool, progress: bool) -> list[Row]:  # fmt: skip
    """Rows of every source, case and place: those in `folder`, and the others measured and kept there. `tolerance_mm`: None for
    no distances."""
    from tqdm import tqdm

    rows: dict[str, list[Row]] = {source.name: [] for source in sources}
    bar = tqdm(total=len(cases) * len(places), desc="shifts", disable=not progress or not cases)
    for case in cases:
        scan, truth = read_case(case)
        voxels = [voxel_hash(scan), voxel_hash(truth)]
        for place in places:
            shifted = None
            for number, source in enumerate(sources):
                path = folder / str(number) / f"{case.name}--{named(*place)}.json"
                facts = {"source": source.key(case.name, named(*place)), "seed": seed, "tolerance_mm": tolerance_mm,
                         "case": voxels}  # fmt: skip
                kept = kept_rows(path, facts, overwrite)
                if kept is None:
                    if shifted is None:
                        file = scans / named(*place) / f"{case.name}.nii.gz" if scans else None
                        stamp = stamp_of(named(*place), seed, voxels[0])
                        shifted = scan if source.model is None else shifted_scan(scan, place, seed, file, stamp)
                    mask = source.mask(shifted, case.name, named(*place))
                    kept = score_masks(
                        mask, truth, name=case.name, tolerance_mm=tolerance_mm, labels=true_labels(truth)
                    )
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


def true_labels(truth: Volume) -> list[int]:
    """The same for every mask of a case: the labels that are there, or 1 where there is none."""
    return [int(v) for v in np.unique(truth.array) if v > 0] or [1]


def shifted_scan(scan: Volume, place: tuple[str, int], seed: int, file: Path | None = None, stamp: str = "") -> Volume:
    """The scan under a shift, from `file` if it was kept there, else kept there; the header's `stamp` says of what."""
    if place[0] == CLEAN:
        return scan
    if file and file.exists():
        kept = read(file)
        told = bytes(kept.header["descrip"]).rstrip(b"\0").decode("latin-1")
        if told != stamp:
            raise ValueError(f"{file} was made of another scan or with another seed ({told or 'nothing says how it was made'}); "
                             "choose another --scans")  # fmt: skip
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
            f"{path} was measured with another model, scan, mask, seed or tolerance; choose another --out, or add --overwrite"
        )
    return [{key: float("nan") if value is None else value for key, value in row.items()} for row in kept["rows"]]


def keep_rows(path: Path, facts: dict[str, Any], rows: list[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(as_plain({"facts": facts, "rows": rows})) + "\n")


def notes(sources: list[Source], cases: list[Case]) -> list[str]:
    """What a reader must know."""
    found = []
    for source in sources:
        seen = [case.name for case in cases if case.name in source.trained_on]
        if seen:
            found.append(f"{source.name} was trained on {len(seen)} of these {len(cases)} cases ({', '.join(seen[:3])} ...): "
                         "choose held-out ones (--cases)")  # fmt: skip
    return found


def tables(rows: list[Row], models: list[str], shifts: list[str], by: tuple[str, ...],
           tolerance_mm: float) -> Robustness:  # fmt: skip
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
        rows, models, shifts, tolerance_mm, overview(rows, models, shifts),
        [point for model in models for name in shifts for point in curve(rows, model, name)], strata,
        corrected([row for model in models for row in against_clean(rows, model, shifts)]),
        corrected([row for other in models[1:] for row in against_model(rows, models[0], other, shifts)]),
    )  # fmt: skip


def with_pairs(found: Robustness, sources: list[Source], table: Path, *, progress: bool) -> Robustness:
    """The same with the agreement of paired scans; folders of masks have no pairs."""
    from ctssl.agreement import agreement, find_pairs, summarise

    rows, sums = [], []
    for source in sources:
        if source.model is not None:
            mine = agreement(source.model, find_pairs(table), progress=progress)
            rows += [{"model": source.name, **row} for row in mine]
            sums.append({"model": source.name, **summarise(mine)})
    return replace(found, pairs=rows, pairs_summary=sums)


def draw(source: Source, cases: list[Case], rows: list[Row], count: int, out: Path, seed: int) -> None:
    """Overlays of the falls in DSC that are biggest, one case each: the mask in colour, the truth as a line."""
    from ctssl.pictures import overlay

    (out / "overlays").mkdir(exist_ok=True)
    left = [row for row in rows if row["model"] == source.name]
    for _ in range(count):
        if not any(row["shift"] != CLEAN for row in left):
            return
        worst = biggest_fall(left, source.name)
        (case,) = [case for case in cases if case.name == worst["case"]]
        scan, truth = read_case(case)
        place = (worst["shift"], worst["severity"])
        for name, severity, score in ((CLEAN, 0, worst["from_dsc"]), (*place, worst["dsc"])):
            seen = shifted_scan(scan, (name, severity), seed)
            path = out / "overlays" / f"{case.name}--{named(name, severity)}.png"
            overlay(seen, source.mask(seen, case.name, named(name, severity)), path, outline=truth,
                    title=f"{case.name}, {named(name, severity)}: DSC {score:.2f}")  # fmt: skip
        left = [row for row in left if row["case"] != worst["case"]]
