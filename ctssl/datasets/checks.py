"""What is wrong with labelled scans, case by case."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ctssl.datasets.case import Case, Dataset, read_case
from ctssl.datasets.seen import seen_by
from ctssl.lint import Finding, lint, outside_body
from ctssl.volume.volume import Volume, voxel_hash

MISSING = 20  # labels that a few cases may lack
RARE = 5  # cases from which a label in one of them alone is odd


@dataclass(frozen=True)
class Problem(Finding):
    """What is wrong with one case; see `Finding`."""

    case: str = ""


def problems(
    dataset: Dataset,
    *,
    model: str | os.PathLike | None = None,
    whole: bool = True,
    progress: bool = False,
    look: Callable[[Case, Volume, Volume, set[int]], object] | None = None,
) -> list[Problem]:
    """Read every case and say what is wrong with it, errors first. An empty list: nothing found.

    `whole`: False for a part of some data, in which a label may be missing. `look` is called with each case
    that could be read, its scan, its mask and the labels in it.

    Errors: unreadable, not a CT in HU, scan and mask on different grids, unknown label values, the same scan
    twice, a patient in two splits, labels that are not 1, 2, ... Warnings: an empty mask, one that lies
    outside the body, a label that no other case has, what `ctssl.lint` doubts, and a scan on which `model`,
    or the encoder that it came from, was trained (exact copies only: a model's folder holds salted hashes of
    voxels and the SeriesInstanceUIDs that are known).
    """
    from tqdm import tqdm

    found: list[Problem] = []
    first: dict[str, Case] = {}
    held: dict[str, set[int]] = {}
    pretrained = seen_by(model)
    if model is not None and not pretrained:
        text = "nothing says which scans it was pretrained on, if it was: whether these are among them cannot be told"
        found.append(Problem("warning", "unknown-pretraining", text, str(model)))
    salt = pretrained.get("salt", "")
    known, labelled, uids = (set(pretrained.get(key, [])) for key in ("voxels", "labelled", "series"))
    for case in tqdm(dataset.cases, desc="checking cases", disable=not progress):

        def say(level: str, code: str, message: str, name: str = case.name) -> None:
            found.append(Problem(level, code, message.removeprefix(f"{name}: "), name))

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                scan, mask = read_case(case)
        except (ValueError, OSError, EOFError, ImportError, MemoryError) as error:
            say("error", "unreadable", str(error))
            continue
        for finding in lint(scan):
            say(finding.level, finding.code, finding.message)
        values = {int(v) for v in np.unique(mask.array)} - {0}
        if not values:
            say("warning", "empty", "the mask is empty: nothing to learn or to judge, if there is a tumour")
        elif outside_body(scan, mask):
            say(
                "warning",
                "outside",
                "the whole mask lies in the air around the body; is it that of another patient?",
            )
        held[case.name] = values
        if look is not None:
            look(case, scan, mask, values)
        unknown = sorted(values - set(dataset.names)) if dataset.names else []
        if unknown:
            say(
                "error",
                "labels",
                f"the mask holds {unknown}, but dataset.json names only {sorted(dataset.names)}",
            )
        own = voxel_hash(scan)
        if own in first:
            say(
                "error",
                "duplicate",
                f"the same scan as {first[own].name}, voxel by voxel; keep one of the two",
            )
        first.setdefault(own, case)
        salted = voxel_hash(scan, salt)
        if salted in labelled:
            text = f"{model} was trained on this very scan, and a mask of it: do not test on it"
            say("warning", "pretrained", text)
        elif salted in known or case.series in uids:
            say(
                "warning",
                "pretrained",
                f"{model} was pretrained on this very scan (without its mask): do not test on it. Only exact copies, and series "
                "that are known, are found",
            )
    found += [] if dataset.names else _odd_labels(held, missing=0 if whole else MISSING)
    splits: dict[str, Case] = {}
    for case in dataset.cases:
        other = splits.setdefault(case.patient, case)
        if other.split != case.split:
            text = f"patient {case.patient} is in {other.split or 'no split'!r} ({other.name}) and {case.split or 'no split'!r}"
            found.append(Problem("error", "patient", text, case.name))
    return sorted(found, key=lambda problem: problem.level != "error")


def _odd_labels(held: dict[str, set[int]], *, missing: int) -> list[Problem]:
    """Where nothing says what the labels are: they must be 1, 2, ... (a mask of 0 and 255 has one label),
    none in one case alone. So many may be `missing`."""
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


def refuse(found: list[Problem], cases: int) -> None:
    """Raise `ValueError` naming every error at once, if there is one."""
    errors = [f"  {p.case}: {p.message}" for p in found if p.level == "error"]
    if errors:
        broken = len({p.case for p in found if p.level == "error"})
        raise ValueError(f"{broken} of {cases} cases cannot be used:\n" + "\n".join(errors))
