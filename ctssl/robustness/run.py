"""A segmenter against CT acquisition shifts: scores against severity, strata, and pairs of
reconstructions."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ctssl.datasets.case import Case
from ctssl.datasets.layouts import find_cases
from ctssl.devices import device_name
from ctssl.evaluation.scores import RESERVED
from ctssl.evaluation.tables import read_facts
from ctssl.files.names import check_path
from ctssl.files.text import read_table
from ctssl.robustness.curves import Row
from ctssl.robustness.masks import Source, check_complete, check_labels, find_sources
from ctssl.robustness.measure import Grid, keep_rows, kept_rows, measure
from ctssl.robustness.pairs import agreement, find_pairs, summarise
from ctssl.robustness.report import Robustness, counted, draw, left, notes, power, tables
from ctssl.shifts import SHIFTS, check_shift
from ctssl.shifts.stamps import CLEAN, hash_content
from ctssl.volume.volume import read


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
        data: labelled scans in a layout that `ctssl.datasets.find_cases` knows; or `images` and `labels`
            apart; or neither, for `pairs` alone. `roi` as for `ctssl.finetune`.
        out: folder for the report. Each score is kept there at once: the same call goes on where it stopped.
        model: a segmenter: name, folder, repository, or the object. `against`: a second one, compared case by
            case.
        predictions: masks that another tool made of the scans that `ctssl shift DATA OUT --every` writes:
            `clean/CASE.nii.gz` and `SHIFT-SEVERITY/CASE.nii.gz`. Alone, or beside a model, which it is
            compared with.
        cases: names of the cases to use, those that no model was trained on. None: all.
        shifts, severities: what to try, each with each.
        by, table: columns of a CSV with a row per case (or of the data's own), for strata of the clean scans.
        pairs: CSV with the columns `first` and `second`, two reconstructions of one acquisition each.
        scans: folder that keeps the shifted scans (of one seed), by the names above, for other models and
            tools.
        overlays: number of shifts to draw, those that cost most DSC first; each shows the case that loses most, clean
            and shifted.
        overwrite: measure again what an earlier call with other settings left in `out`.

    Raises `ValueError` or `FileNotFoundError` for what does not fit, before any work.
    """
    asked = _Asked(
        check_path(out),
        _several(shifts),
        _severities(severities),
        _several(by),
        seed,
        tolerance_mm,
        overwrite,
        progress,
    )
    began = time.monotonic()
    sources = find_sources(model, against, predictions, device)
    names = None if cases is None else list(_several(cases))
    wanted = choose_cases(data, images, labels, roi, names) if data is not None or images is not None else []
    _check_together(
        asked, wanted, table=table, pairs=pairs, foreign=predictions is not None and model is None
    )
    facts = (
        read_facts(Path(table), asked.by, [c.name for c in wanted]) if table is not None and wanted else {}
    )
    doubts = _check_files(asked, wanted, predictions, pairs)
    models = [source.name for source in sources]
    prepare_folder(asked, models, wanted, pairs=pairs is not None)
    grid = Grid(asked.places, asked.out / "rows", None if scans is None else Path(scans), seed, tolerance_mm)
    measured = measure(sources, wanted, grid, overwrite=overwrite, progress=progress)
    rows, aside = counted([{**row, **facts.get(row["case"], {})} for row in measured])
    report = tables(rows, models, list(dict.fromkeys(asked.shifts)), asked.by, tolerance_mm)
    report = replace(report, notes=[*notes(sources, wanted), *doubts, *aside, *left(rows), *power(report)])
    if pairs is not None:
        report = with_pairs(report, sources, Path(pairs), asked)
    report = replace(report, device=device_of(sources), seconds=round(time.monotonic() - began, 1))
    report.save(asked.out)
    if rows and overlays:
        draw(sources[0], wanted, rows, overlays, asked.out, seed)
    return report


def device_of(sources: list[Source]) -> str:
    """Return what the first model among the sources runs on; "" for masks alone."""
    networks: list[Any] = [source.model for source in sources if source.model is not None]
    return device_name(next(networks[0].parameters()).device) if networks else ""


@dataclass(frozen=True)
class _Asked:
    """The plain arguments of `measure_robustness`. Raises `ValueError` for those that are invalid by themselves."""

    out: Path
    shifts: tuple[str, ...]
    severities: tuple[int, ...]
    by: tuple[str, ...]
    seed: int
    tolerance_mm: float
    overwrite: bool
    progress: bool

    def __post_init__(self) -> None:
        if not self.tolerance_mm > 0:
            raise ValueError(f"tolerance_mm={self.tolerance_mm}: must be > 0")
        for name in self.shifts:
            for severity in self.severities:
                check_shift(name, severity)
        if taken := sorted(set(self.by) & RESERVED):
            raise ValueError(
                f"a stratum cannot be called {', '.join(taken)}, as the results have such a column of their own; rename "
                "the column of the table"
            )

    @property
    def places(self) -> list[tuple[str, int]]:
        """Shift and severity, the clean scan first."""
        return [(CLEAN, 0), *((name, s) for name in self.shifts for s in sorted(set(self.severities)))]


def _check_together(asked: _Asked, cases: list[Case], *, table: Any, pairs: Any, foreign: bool) -> None:
    """Raise `ValueError` for arguments that do not fit together. `foreign`: only another tool's masks."""
    if not cases and pairs is None:
        raise ValueError(
            "nothing to measure: give labelled scans (DATA), or --pairs with a table of scan pairs"
        )
    if table is None and any(column not in case.facts for column in asked.by for case in cases):
        raise ValueError(f"by={asked.by} needs a table with these columns (--table cases.csv)")
    if foreign and pairs is not None:
        raise ValueError(
            "--pairs needs a --model that segments both scans of a pair; masks of another tool cannot be paired"
        )
    if cases and not (asked.shifts and asked.severities):
        raise ValueError("give at least one shift and one severity")


def _check_files(asked: _Asked, cases: list[Case], predictions: Any, pairs: Any) -> list[str]:
    """Raise for masks or pairs that are missing or do not fit; return what is suspicious about masks."""
    if pairs is not None:
        find_pairs(Path(pairs))
    if predictions is None:
        return []
    check_complete(Path(predictions), cases, asked.places)
    return check_labels(Path(predictions), cases, asked.places)


def _severities(values: int | Iterable[int]) -> tuple[int, ...]:
    return (values,) if isinstance(values, int) else tuple(int(value) for value in values)


def _several(names: str | Iterable[str]) -> tuple[str, ...]:
    """Return names as a tuple; one name becomes a tuple of one."""
    return (names,) if isinstance(names, str) else tuple(names)


def choose_cases(data: Any, images: Any, labels: Any, roi: str | None, names: list[str] | None) -> list[Case]:
    """Return the cases to judge: those of `names`, or all. Raises `ValueError` for an unknown name."""
    found = find_cases(data, images=images, labels=labels, roi=roi).of_one_channel("robustness")
    unknown = set(names or []) - {case.name for case in found}
    if unknown:
        raise ValueError(
            f"no case is called {', '.join(sorted(unknown))}; they are called {found[0].name!r} and so on"
        )
    return [case for case in found if names is None or case.name in names]


def prepare_folder(asked: _Asked, models: list[str], cases: list[Case], *, pairs: bool) -> None:
    """Create the output folder. Raises `FileExistsError` for one that holds something else, or a report with models,
    cases, shifts or pairs that this one lacks (unless `overwrite`)."""
    out, table = asked.out, asked.out / "rows.csv"
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "rows").is_dir())):
        raise FileExistsError(f"{out} holds something else than a robustness report; choose another --out")
    (out / "rows").mkdir(parents=True, exist_ok=True)
    if asked.overwrite:
        return
    for there, wanted, what in ((table, bool(cases), "scans under shifts"), (out / "pairs", pairs, "pairs")):
        if there.exists() and not wanted:
            raise FileExistsError(
                f"{out} holds a report of {what}, which this one would replace; ask for both in one call, choose another --out, "
                "or add --overwrite"
            )
    if not table.is_file():
        return
    keys = ("model", "case", "shift", "severity")
    before = {tuple(row.get(key, "") for key in keys) for _, row in read_table(table)[1]}
    now = {(m, case.name, name, str(s)) for m in models for case in cases for name, s in asked.places}
    if lost := sorted(before - now):
        raise FileExistsError(
            f"{asked.out} holds a report of {len(lost)} more results, such as {' '.join(lost[0])}; ask for these too, choose "
            "another --out, or add --overwrite"
        )


def with_pairs(report: Robustness, sources: list[Source], table: Path, asked: _Asked) -> Robustness:
    """Add the agreement of paired scans, each kept in `out/pairs`; folders of masks have no pairs."""
    from tqdm import tqdm

    rows, sums = [], []
    for number, source in enumerate(sources):
        if source.model is None:
            continue
        mine: list[Row] = []
        for pair in tqdm(find_pairs(table), desc="pairs", disable=not asked.progress):
            name, one, two = pair[0], read(pair[1]), read(pair[2])
            facts = {"source": source.key("", ""), "pair": [name, hash_content(one), hash_content(two)]}
            digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
            path = asked.out / "pairs" / str(number) / f"{digest}.json"
            kept = kept_rows(path, facts, asked.overwrite)
            if kept is None:
                kept = agreement(source.model, [(name, one, two)])
                keep_rows(path, facts, kept)
            mine += kept
        rows += [{"model": source.name, **row} for row in mine]
        sums.append({"model": source.name, **summarise(mine)})
    return replace(report, pairs=rows, pairs_summary=sums)
