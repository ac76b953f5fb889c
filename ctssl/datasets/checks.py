"""What is wrong with labelled scans, case by case."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ctssl.datasets.case import Case, Dataset, read_case
from ctssl.datasets.manifest import patients_in_several
from ctssl.datasets.seen import incomplete, scan_hash, seen_by
from ctssl.datasets.unlike import Sign, signs, unlike_others
from ctssl.hub.folder import ModelFolder
from ctssl.scan_checks import UNIT, Finding, level_of, lint, outside_body, two_geometries
from ctssl.volume.dicom_checks import MaskWarning
from ctssl.volume.volume import Volume

MISSING = 20  # labels that a few cases may lack
UNLIKE = "is it the mask of another scan, moved, or flipped? Look at it"
RARE = 5  # cases from which a label in one of them alone is odd


@dataclass(frozen=True)
class Problem(Finding):
    """What is wrong with one case; see `Finding`."""

    case: str = ""


@dataclass(frozen=True)
class Surveyed:
    """What is kept of a case that could be read. `scan_hash`: salted, of its voxels; `content`: of scan, mask
    and grid; `grid`: the scan without its voxels; `labels`: that occur in the mask, each with its `Sign`; `levels`: how far the
    values of each channel beside the CT reach."""

    scan_hash: str
    content: str
    grid: Volume
    labels: dict[int, Sign]
    levels: tuple[float, ...] = ()


@dataclass(frozen=True)
class Survey:
    """Every case, read once: what is wrong with it (errors first), and what is kept of it, by name."""

    problems: list[Problem]
    cases: dict[str, Surveyed]


def problems(
    dataset: Dataset,
    *,
    model: str | os.PathLike | ModelFolder | None = None,
    whole: bool = True,
    look: Callable[[Case, Volume, Volume], object] | None = None,
    progress: bool = False,
) -> list[Problem]:
    """Read every case and list what is wrong with it, errors first; empty where nothing is.

    Errors: unreadable, not a CT in HU, scan and mask on different grids, unknown label values, the same scan
    twice, a patient in two splits, labels that are not 1, 2, ... Warnings: an empty mask, one that lies
    outside the body, a label that no other case has, or whose HU or side of the body is unlike that in the
    other cases (from 15 on), what is left out of a DICOM mask, what `ctssl.scan_checks` finds suspicious, and a scan
    on which `model`, or the encoder that it came from, was trained (exact copies only: a model's folder holds
    salted hashes of voxels and the SeriesInstanceUIDs that are known).

    Args:
        dataset: the cases; see `find_cases`.
        model: also look for scans that this model was trained on.
        whole: False for a part of some data, in which a label may be missing.
        look: called with each case that could be read, its scan and its mask.
    """
    seen = None if model is None else seen_by(model)
    return survey(dataset, seen=seen, model=str(model), whole=whole, look=look, progress=progress).problems


def survey(
    dataset: Dataset,
    *,
    seen: dict[str, Any] | None = None,
    salt: str = "",
    model: str = "the model",
    whole: bool = True,
    look: Callable[[Case, Volume, Volume], object] | None = None,
    progress: bool = False,
) -> Survey:
    """Read and check every case once; see `problems`.

    Args:
        seen: `seen.json` of the model, whose salt then counts; {} for a model without one, None for no model.
        salt: of the hashes of voxels, where `seen` has none.
        model: its name, for messages.
        look: called with each case that could be read, its scan and its mask.
    """
    from tqdm import tqdm

    unknown, listed = incomplete(seen), bool(seen)
    seen, found, kept = seen or {}, [], {}
    for case in tqdm(dataset.cases, desc="checking cases", disable=not progress):
        try:
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                scan, mask = read_case(case)
        except (ValueError, OSError, EOFError, ImportError, MemoryError) as error:
            found.append(Problem("error", "unreadable", _short(error, case), case.name))
            continue
        told = [Finding("warning", "mask", str(w.message)) for w in said if w.category is MaskWarning]
        told += [replace(one, message=f"its mask: {one.message}") for one in two_geometries(mask)]
        for one in [*lint(scan), *told]:
            found.append(Problem(one.level, one.code, _short(one.message, case), case.name))
        kept[case.name] = one = _surveyed(scan, mask, scan_hash(scan, seen, salt))
        found += _mask_problems(case, scan, mask, set(one.labels), dataset.names)
        found += _seen_problems(case, one.scan_hash, case.series or scan.series_uid, seen, model)
        if look is not None:
            look(case, scan, mask)
    found += _duplicates(kept)
    for name, told in unlike_others({name: one.labels for name, one in kept.items()}).items():
        found.append(Problem("warning", "unlike", f"{'; '.join(told)}: {UNLIKE}", name))
    found += _odd_units({name: one.levels for name, one in kept.items()}, dataset.channels)
    if not dataset.names:
        found += _odd_labels(
            {name: set(one.labels) for name, one in kept.items()}, missing=0 if whole else MISSING
        )
    found += _torn_patients(dataset.cases)
    if unknown:
        text = (
            "only some of the scans that it was trained on are listed"
            if listed
            else "no list of the scans that it was pretrained on"
        )
        text += ": whether these are among them is unknown"
        found.append(Problem("warning", "unknown-pretraining", text, model))
    return Survey(sorted(found, key=lambda problem: problem.level != "error"), kept)


def content_of(scan: Volume, mask: Volume, own: str) -> str:
    """Return a hash of scan, mask and grid. `own`: the hash of the scan's voxels."""
    digest = hashlib.sha256(f"{own} {np.round(scan.affine, 4).tolist()}".encode())
    for array in (mask.array, *scan.extra):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _surveyed(scan: Volume, mask: Volume, own: str) -> Surveyed:
    labels = signs(scan, mask, {int(v) for v in np.unique(mask.array)} - {0})
    grid = scan.on_grid(np.broadcast_to(np.float32(0), scan.shape))
    return Surveyed(own, content_of(scan, mask, own), grid, labels, tuple(map(level_of, scan.extra)))


def _mask_problems(
    case: Case, scan: Volume, mask: Volume, labels: set[int], names: dict[int, str]
) -> list[Problem]:
    found = []
    if not labels:
        text = "the mask is empty: nothing to learn or to judge, if there is a tumour"
        found.append(Problem("warning", "empty", text, case.name))
    elif outside_body(scan, mask):
        text = (
            "most of the mask lies in air that no tissue encloses, as around the body; is it that of another patient, "
            "or has it moved?"
        )
        found.append(Problem("warning", "outside", text, case.name))
    if names and (unknown := sorted(labels - set(names))):
        text = f"the mask holds {unknown}, but only {sorted(names)} have names (dataset.json, or names)"
        found.append(Problem("error", "labels", text, case.name))
    return found


def _seen_problems(
    case: Case, scan_hash: str, series: str, seen: dict[str, Any], model: str
) -> list[Problem]:
    """Return a warning where a model was trained on a scan. `series`: its SeriesInstanceUID; "" where it has none."""
    text = ""
    if scan_hash in seen.get("labelled", []):
        text = f"{model} was trained on this very scan, and a mask of it: do not test on it"
    elif scan_hash in seen.get("voxels", []) or series in seen.get("series", []):
        text = (
            f"{model} was pretrained on this very scan (without its mask): do not test on it. Only exact copies, "
            "and series that are known, are found"
        )
    return [Problem("warning", "pretrained", text, case.name)] if text else []


def _duplicates(kept: dict[str, Surveyed]) -> list[Problem]:
    """Return an error for each scan that equals an earlier one, voxel by voxel."""
    first: dict[str, str] = {}
    twins = [(name, first.setdefault(one.scan_hash, name)) for name, one in kept.items()]
    return [
        Problem("error", "duplicate", f"the same scan as {other}, voxel by voxel; keep one of the two", name)
        for name, other in twins
        if name != other
    ]


def _torn_patients(cases: list[Case]) -> list[Problem]:
    """Return an error for each case whose patient is in another split too."""
    found = []
    for patient in patients_in_several((case.patient, case.split) for case in cases):
        first, *others = (case for case in cases if case.patient == patient)
        for case in others:
            if case.split != first.split:
                sides = f"{first.split or 'no split'!r} ({first.name}) and {case.split or 'no split'!r}"
                found.append(Problem("error", "patient", f"patient {patient} is in {sides}", case.name))
    return found


def _short(message: Any, case: Case) -> str:
    return str(message).removeprefix(f"{case.name}: ")


def _odd_labels(held: dict[str, set[int]], *, missing: int) -> list[Problem]:
    """Check labels that have no names: they must be 1, 2, ..., with at most `missing` of them absent, and none in one
    case alone."""
    counts = Counter(value for values in held.values() for value in values)
    gaps = [value for value in counts if value > len(counts) + missing]
    found = []
    for name, values in held.items():
        if odd := sorted(values & set(gaps)):
            found.append(
                Problem(
                    "error",
                    "labels",
                    f"the mask holds {odd}, but the {len(counts)} labels of these masks must be "
                    f"{', '.join(map(str, range(1, len(counts) + 1)))}: renumber them",
                    name,
                )
            )
        elif lone := sorted(value for value in values if counts[value] == 1 and len(held) >= RARE):
            found.append(
                Problem("warning", "labels", f"no other mask holds {lone}; is it meant to be a label?", name)
            )
    return found


def _odd_units(levels: dict[str, tuple[float, ...]], names: tuple[str, ...]) -> list[Problem]:
    """Return a warning for each channel whose values reach much further, or much less far, than in most other cases."""
    found = []
    for number, channel in enumerate(names):
        held = {case: own[number] for case, own in levels.items()}
        for case, level in held.items():
            others = [other for name, other in held.items() if name != case]
            far = sum(not other / UNIT <= level <= other * UNIT for other in others)
            if len(others) > 1 and 2 * far > len(others):
                text = (
                    f"the channel {channel} has values up to {level:.3g}, in most other cases {np.median(others):.3g}; give all "
                    "cases in one unit"
                )
                found.append(Problem("warning", "unit", text, case))
    return found


def check_problems(found: list[Problem], cases: int) -> None:
    """Raise `ValueError` naming every error at once, if there is one."""
    errors = [f"  {p.case}: {p.message}" for p in found if p.level == "error"]
    if errors:
        broken = len({p.case for p in found if p.level == "error"})
        raise ValueError(f"{broken} of {cases} cases cannot be used:\n" + "\n".join(errors))
