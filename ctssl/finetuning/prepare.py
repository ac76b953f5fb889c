"""Labelled scans to what a training reads: who trains and who is held out, a survey of every case, and arrays on
the working grid."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm import tqdm

from ctssl.datasets import checks
from ctssl.datasets.case import Case, Dataset, read_case
from ctssl.datasets.seen import scan_hash
from ctssl.datasets.splits import divide, draw_patients, held_out_in, side_of, validation
from ctssl.finetuning.crops import PreparedCase
from ctssl.finetuning.plan import Structures, measure
from ctssl.finetuning.request import Request
from ctssl.shifts.copies import shifted_copies
from ctssl.volume.grids import prepare, resample
from ctssl.volume.volume import Volume
from ctssl.zoo import Preprocess


@dataclass(frozen=True)
class Sides:
    """Who does what. `learning` and `validating` are the training cases; `named` are names of validating
    cases that a table gives, empty where they were drawn."""

    learning: list[Case]
    validating: list[Case]
    held_out: list[Case]
    named: list[str]

    @property
    def training(self) -> list[Case]:
        """All training cases; those that validate last."""
        return [*self.learning, *self.validating]


@dataclass(frozen=True)
class Survey:
    """What a survey of the cases keeps: problems and records (`ctssl.datasets.checks`), and measurements.

    `salt`: of the hashes of voxels. `seen`: `seen.json` of the starting weights; {} for none.
    """

    records: checks.Survey
    structures: dict[str, Structures]
    salt: str
    seen: dict[str, Any]

    def read(self, case: Case) -> tuple[Volume, Volume]:
        """Read scan and mask again. Raises `ValueError` where they are not what they were: a report would tell of other data."""
        scan, mask = read_case(case)
        now = checks.content_of(scan, mask, scan_hash(scan, self.seen, self.salt))
        if now != self.records.cases[case.name].content:
            raise ValueError(
                f"{case.name}: scan or mask changed since this run began; start the same command again, which will say what it "
                "keeps"
            )
        return scan, mask

    def content(self, cases: list[Case]) -> str:
        """Return a hash of the content of these cases, and of the names of the structures that are taken from them."""
        texts = (f"{case.name} {self.records.cases[case.name].content} {case.roi}" for case in cases)
        return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()

    def labels(self, cases: list[Case]) -> set[int]:
        """Return the labels that occur in these cases."""
        return set().union(*(self.records.cases[case.name].labels for case in cases))


def choose_sides(cases: list[Case], request: Request) -> Sides:
    """Divide the cases by their use. The validation cases of a table come on top of the few of `few_shot`."""
    seed, settings = request.settings.seed, request.settings
    hold_out = held_out_in(cases, request.folds, request.fold, seed) if request.folds else request.hold_out
    train, held = divide(cases, hold_out, seed)
    named = [case for case in train if hold_out is None and case.split and side_of(case) == "val"]
    rest = [case for case in train if case not in named]
    if not rest:
        raise ValueError(
            f"all {len(named)} training cases are for validation (split val), and none is left to learn from"
        )
    rest = draw_patients(rest, request.few_shot, seed) if request.few_shot is not None else rest
    if named:
        return Sides(rest, named, held, [case.name for case in named])
    drawn = set(validation(rest, settings.validation, seed))
    learning = [case for case in rest if case.name not in drawn]
    return Sides(learning, [case for case in rest if case.name in drawn], held, [])


def survey_cases(
    dataset: Dataset, *, seen: dict[str, Any] | None, model: str, whole: bool, progress: bool
) -> Survey:
    """Read every case once, check it and measure its labelled structures.

    Args:
        seen: `seen.json` of the starting weights, {} where they have none; None for initial weights.
        model: what they are called, for messages.
        whole: False for a part of some data, in which a label may be missing.

    Raises `ValueError` naming every error at once.
    """
    structures: dict[str, Structures] = {}

    def look(case: Case, scan: Volume, mask: Volume) -> None:
        structures[case.name] = measure(scan, mask)

    names = "\n".join(sorted(case.name for case in dataset.cases))
    salt = hashlib.sha256(names.encode()).hexdigest()[:16]
    found = checks.survey(
        dataset, seen=seen, salt=salt, model=model, whole=whole, look=look, progress=progress
    )
    checks.check_problems(found.problems, len(dataset.cases))
    return Survey(found, structures, (seen or {}).get("salt", salt), seen or {})


def survey_warnings(survey: Survey, sides: Sides) -> list[str]:
    """Return the warnings about the cases of a training. Which scans the starting weights have seen matters for
    held-out cases alone."""
    held = {case.name for case in sides.held_out}
    ours = held | {case.name for case in sides.training}

    def matters(problem: checks.Problem) -> bool:
        if problem.code == "unknown-pretraining":
            return bool(held)
        return problem.case in (held if problem.code == "pretrained" else ours)

    found = [
        problem for problem in survey.records.problems if problem.level == "warning" and matters(problem)
    ]
    return [f"{problem.case}: {problem.message}" for problem in found]


def name_labels(
    given: dict[int, str] | None, known: dict[int, str], labels: set[int], *, whole: bool = True
) -> dict[int, str] | None:
    """Name the labels that are learned: as given, as the data says, or (None) by their numbers.

    Args:
        given: names that the user gives; they have to name every label.
        known: names in `dataset.json`, which may name more labels than the masks hold.
        labels: labels that occur in the masks of the training cases.
        whole: False where only some of the training cases were drawn, in which labels may be missing.
    """
    highest = max(labels, default=0)
    count = max(highest, 0 if whole else len(given or {}))
    if given and sorted(given) != list(range(1, count + 1)):
        raise ValueError(f"names for labels {sorted(given)}, but the masks hold labels 1..{highest}")
    return given or known or None


def prepare_cases(
    cases: list[Case],
    preprocess: Preprocess,
    *,
    progress: bool,
    copies: int = 0,
    seed: int = 0,
    read: Callable[[Case], tuple[Volume, Volume]] = read_case,
) -> list[PreparedCase]:
    """Read cases again and bring them, and `copies` shifted copies of each, onto the working grid."""
    scans = []
    for number, case in enumerate(tqdm(cases, desc="preparing scans", disable=not progress)):
        scan, mask = read(case)
        image = prepare(scan, preprocess)
        labels = onto_grid(mask, image)
        images = [image, *(prepare(c, preprocess) for c in shifted_copies(scan, copies, seed=seed + number))]
        facts = (labels, image.affine, case.name, bool(mask.array.any()))
        scans += [PreparedCase(one.stack.astype(np.float16), *facts) for one in images]
    return scans


def onto_grid(mask: Volume, grid: Volume) -> np.ndarray:
    """Bring labels onto another grid: each voxel gets the label that fills most of it."""
    labels, most = np.zeros(grid.shape, np.uint8), np.zeros(grid.shape, np.float32)
    for k in sorted({0, *np.unique(mask.array).tolist()}):  # one after the other, in the memory of one
        share = resample(mask.array == k, mask.affine, grid.shape, grid.affine, fill=float(k == 0))
        larger = share > most
        labels[larger], most[larger] = k, share[larger]
    return labels


def sub_dataset(dataset: Dataset, cases: list[Case], names: dict[int, str] | None) -> Dataset:
    """Return a part of a dataset, with the user's names of the labels if there are any."""
    return replace(dataset, cases=cases, names=names or dataset.names)
