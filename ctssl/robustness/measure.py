"""Every case under every shift: segmented, scored, and kept at once."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.case import Case, read_case
from ctssl.evaluation.scores import score_masks
from ctssl.files.atomic import write_whole
from ctssl.files.text import as_plain, read_json
from ctssl.robustness.curves import Row
from ctssl.robustness.masks import Source
from ctssl.shifts import REVISION, shift
from ctssl.shifts.stamps import (
    CLEAN,
    add_stamp,
    describe_difference,
    hash_content,
    make_stamp,
    read_stamp,
    shift_name,
)
from ctssl.volume.grids import resample, working_grid
from ctssl.volume.volume import AIR_HU, Volume, read

BODY_HU = -950.0  # above it is the body, with its lungs
TAKING = ("thickness", "truncation")
"""Shifts that may leave a scan as it is, or cut off what is labelled."""


@dataclass(frozen=True)
class Grid:
    """What is measured of every case, and where it is kept.

    Args:
        places: shift and severity, `("clean", 0)` for the scan as it is.
        folder: for the rows, a file for each case and place.
        scans: folder that keeps the shifted scans; None keeps none.
        seed: of the noise.
        tolerance_mm: of the surface Dice. None: no distances, which take most of the time.
    """

    places: list[tuple[str, int]]
    folder: Path
    scans: Path | None
    seed: int
    tolerance_mm: float | None

    def facts(self, source: Source, case: str, place: tuple[str, int], voxels: list[str]) -> dict[str, Any]:
        """Return what the rows depend on. `voxels`: hashes of scan and truth."""
        return {
            "source": source.key(case, shift_name(*place)),
            "seed": self.seed,
            "tolerance_mm": self.tolerance_mm,
            "case": voxels,
            "shifts": REVISION,
            "labels": "of truth or mask",
        }


def measure(
    sources: list[Source], cases: list[Case], grid: Grid, *, overwrite: bool = False, progress: bool = False
) -> list[Row]:
    """Return the rows of every source, case and place: those kept in `grid.folder`, and the others, which are
    measured and kept there at once.

    `overwrite`: measure again what was measured with other settings; without it, that raises `ValueError`.
    """
    from tqdm import tqdm

    rows: dict[str, list[Row]] = {source.name: [] for source in sources}
    bar = tqdm(total=len(cases) * len(grid.places), desc="shifts", disable=not progress or not cases)
    for case in cases:
        scan, truth = read_case(case)
        for place in grid.places:
            for name, kept in _measure_place(sources, case, (scan, truth), place, grid, overwrite).items():
                where = {
                    "model": name,
                    "patient": case.patient or case.name,
                    "shift": place[0],
                    "severity": place[1],
                }
                rows[name] += [{**case.facts, **where, **row} for row in kept]
            bar.update()
    bar.close()
    return [row for source in sources for row in rows[source.name]]


def _measure_place(
    sources: list[Source],
    case: Case,
    volumes: tuple[Volume, Volume],
    place: tuple[str, int],
    grid: Grid,
    overwrite: bool,
) -> dict[str, list[Row]]:
    """Return the rows of each source for a case (scan and truth) at a place; the scan is shifted only where a source
    needs it."""
    scan, truth = volumes
    voxels = [hash_content(scan), hash_content(truth)]
    shifted: Volume | None = None
    rows = {}
    for number, source in enumerate(sources):
        path = grid.folder / str(number) / f"{case.name}--{shift_name(*place)}.json"
        facts = grid.facts(source, case.name, place, voxels)
        kept = kept_rows(path, facts, overwrite)
        if kept is None:
            if shifted is None and (source.model is not None or place[0] in TAKING):
                file = grid.scans / shift_name(*place) / f"{case.name}.nii.gz" if grid.scans else None
                stamp = make_stamp(shift_name(*place), grid.seed, voxels[0])
                shifted = shifted_scan(scan, place, grid.seed, file, stamp)
            seen = scan if shifted is None else shifted
            mask = source.mask(seen, case.name, shift_name(*place))
            scores = score_masks(mask, truth, name=case.name, tolerance_mm=grid.tolerance_mm)
            size = {} if shifted is None else size_of_change(scan, seen, source.model)
            kept = [
                {**row, **left_to_see(scan, seen, truth, row["label"], place[0]), **size} for row in scores
            ]
            keep_rows(path, facts, kept)
        rows[source.name] = kept
    return rows


def left_to_see(scan: Volume, seen: Volume, truth: Volume, label: int, name: str) -> Row:
    """Return `best_dsc`, the DSC of a mask that is right wherever a truncated scan still shows something, and
    `unchanged`, whether the shift did nothing."""
    best = 1.0
    if name == "truncation":
        true = truth.array == label
        there = int((true & ~((seen.array == AIR_HU) & (scan.array > AIR_HU))).sum())
        best = 2 * there / (there + int(true.sum())) if there else float(not true.any())
    return {"best_dsc": best, "unchanged": name in TAKING and np.array_equal(seen.array, scan.array)}


def size_of_change(scan: Volume, seen: Volume, model: Any) -> Row:
    """Return how large a shift is, in mean absolute HU over the body: on the scan's grid (`scan_mm`, its finest
    spacing) and at the model's working spacing (`working_mm`). `width_mm`: of the field of view.
    """
    spacing = model.spec.preprocess.spacing_mm if model is not None and model.spec else min(scan.spacing_mm)
    shape, grid = working_grid(scan, spacing)
    change = seen.array.astype(np.float32) - scan.array
    coarse, body = (
        resample(array, scan.affine, shape, grid)
        for array in (change, (scan.array > BODY_HU).astype(np.float32))
    )
    sides = [n * s for n, s in zip(scan.shape, scan.spacing_mm, strict=True)]
    return {
        "scan_mm": min(scan.spacing_mm),
        "change_hu": _mean_inside(change, scan.array > BODY_HU),
        "working_mm": spacing,
        "working_change_hu": _mean_inside(coarse, body > 0.5),
        "width_mm": sorted(sides)[1],
    }


def _mean_inside(change: np.ndarray, body: np.ndarray) -> float:
    return float(np.abs(change[body]).mean()) if body.any() else 0.0


def shifted_scan(
    scan: Volume, place: tuple[str, int], seed: int, file: Path | None = None, stamp: str = ""
) -> Volume:
    """Return the scan under a shift, read from `file` if it exists, otherwise made and written there; the `stamp` in
    its header says what it is."""
    if place[0] == CLEAN:
        return scan
    if file and file.exists():
        kept = read(file)
        if why := describe_difference(read_stamp(kept), stamp):
            raise ValueError(f"{file} is not this shifted scan: {why}; choose another --scans")
        return kept
    found = shift(scan, place[0], severity=place[1], seed=seed)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        add_stamp(found, stamp).save(file, overwrite=True)  # another process may have been as fast
    return found


def kept_rows(path: Path, facts: dict[str, Any], overwrite: bool) -> list[Row] | None:
    """Return the rows that an earlier run kept; None where they have to be measured."""
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
