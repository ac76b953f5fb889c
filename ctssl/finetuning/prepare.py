"""Labelled scans to arrays that a training reads: sides, a survey of every case, and the working grid."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ctssl.datasets.case import Case, Dataset, read_case
from ctssl.datasets.checks import Problem, problems, refuse
from ctssl.datasets.splits import divide, few, side_of
from ctssl.finetuning.plan import Tumours, measure
from ctssl.lint import check
from ctssl.shifts.copies import shifted_copies
from ctssl.volume.grids import prepare, resample
from ctssl.volume.volume import Volume, voxel_hash
from ctssl.zoo import Preprocess


def sides(
    cases: list[Case], hold_out: float | list[str] | None, few_shot: int | None, seed: int
) -> tuple[list[Case], list[Case], list[str]]:
    """Cases to train on and cases held out; and the names of those to train on that are to choose the
    weights, where the table says so (they come on top of the few of `few_shot`)."""
    train, held = divide(cases, hold_out, seed)
    told = [case for case in train if hold_out is None and case.split and side_of(case) == "val"]
    rest = [case for case in train if case not in told]
    if not rest:
        raise ValueError(
            f"all {len(told)} cases are to choose the weights (split val), and none is left to learn from"
        )
    rest = few(rest, few_shot, seed) if few_shot is not None else rest
    return rest + told, held, [case.name for case in told]


class Survey(NamedTuple):
    """Of every case: its tumours, the salted hash of its voxels, and its grid (a scan without voxels). The
    labels that occur, and what is doubtful."""

    tumours: dict[str, Tumours]
    hashes: dict[str, str]
    grids: dict[str, Volume]
    labels: set[int]
    doubts: list[str]


def survey(
    dataset: Dataset, held: list[Case], *, whole: bool, model: Any, salt: str, progress: bool
) -> Survey:
    """Read every case once. Raises for what is wrong."""
    tumours: dict[str, Tumours] = {}
    hashes: dict[str, str] = {}
    grids: dict[str, Volume] = {}
    there: set[int] = set()

    def look(case: Case, scan: Volume, mask: Volume, labels: set[int]) -> None:
        tumours[case.name], hashes[case.name] = measure(scan, mask), voxel_hash(scan, salt)
        grids[case.name] = replace(scan, array=np.broadcast_to(np.float32(0), scan.shape))
        there.update(labels)

    found = problems(dataset, model=model, whole=whole, progress=progress, look=look)
    refuse(found, len(dataset.cases))
    return Survey(tumours, hashes, grids, there, doubtful(found, {case.name for case in held}))


def doubtful(found: list[Problem], held: set[str]) -> list[str]:
    """The warnings that concern a training: that an encoder has seen a scan matters for those it is judged
    on."""
    return [
        f"{p.case}: {p.message}"
        for p in found
        if p.level == "warning"
        and p.code != "unknown-pretraining"
        and (p.code != "pretrained" or p.case in held)
    ]


def named(
    given: dict[int, str] | None, found: dict[int, str], classes: int
) -> tuple[dict[int, str] | None, int]:
    """Names of the labels, and how many classes there are with the background."""
    if given and sorted(given) != list(range(1, classes)):
        raise ValueError(f"names for labels {sorted(given)}, but the masks hold labels 1..{classes - 1}")
    if given or not found:
        return given, classes
    classes = max(classes, max(found) + 1)
    return {k: found.get(k, f"class {k}") for k in range(1, classes)}, classes


def prepare_cases(
    cases: list[Case], preprocess: Preprocess, *, progress: bool, copies: int = 0, seed: int = 0
) -> tuple[list[tuple[np.ndarray, np.ndarray]], int]:
    """(image 0..1 float16, labels uint8) of each case and its shifted copies on the model's grid; the number
    of classes."""
    done, top = [], 0
    for number, case in enumerate(tqdm(cases, desc="preparing scans", disable=not progress)):
        scan, mask = read_case(case)
        image = prepare(check(scan), preprocess)
        labels = onto_grid(mask, image)
        images = [image, *(prepare(c, preprocess) for c in shifted_copies(scan, copies, seed=seed + number))]
        done += [(one.array.astype(np.float16), labels) for one in images]
        top = max(top, int(mask.array.max()))
    return done, top + 1


def onto_grid(mask: Volume, grid: Volume) -> np.ndarray:
    """Labels on another grid, each voxel the label that fills most of it."""
    classes = int(mask.array.max()) + 1
    shares = np.stack(
        [
            resample(mask.array == k, mask.affine, grid.shape, grid.affine, fill=float(k == 0))
            for k in range(classes)
        ]
    )
    return shares.argmax(0).astype(np.uint8)
