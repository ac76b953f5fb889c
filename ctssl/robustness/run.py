"""A segmenter against CT acquisition shifts: scores against severity, strata, and pairs of
reconstructions."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ctssl.datasets.case import Case
from ctssl.datasets.layouts import find_cases
from ctssl.evaluation.scores import RESERVED
from ctssl.evaluation.tables import facts_of
from ctssl.robustness.curves import (
    Row,
)
from ctssl.robustness.masks import Source, complete, find_sources, known_labels
from ctssl.robustness.measure import keep_rows, kept_rows, measure
from ctssl.robustness.report import Robustness, draw, left, notes, power, tables
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
        overlays: of so many shifts, those that cost most DSC, a picture of the case that loses most, clean
            and shifted.
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
    if taken := sorted(set(by) & RESERVED):
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
        from ctssl.robustness.pairs import find_pairs

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


def with_pairs(
    found: Robustness, sources: list[Source], table: Path, folder: Path, *, overwrite: bool, progress: bool
) -> Robustness:
    """The same with the agreement of paired scans, each kept in `folder`; folders of masks have no pairs."""
    from tqdm import tqdm

    from ctssl.robustness.pairs import agreement, find_pairs, summarise

    rows, sums = [], []
    for number, source in enumerate(sources):
        if source.model is None:
            continue
        mine: list[Row] = []
        for pair in tqdm(find_pairs(table), desc="pairs", disable=not progress):
            name, one, two = pair[0], read(pair[1]), read(pair[2])
            facts = {"source": source.key("", ""), "pair": [name, hash_content(one), hash_content(two)]}
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
