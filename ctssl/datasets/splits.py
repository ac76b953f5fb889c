"""Which patients are trained on and which are held out. The scans of one patient always stay together."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ctssl.datasets.case import Case
from ctssl.datasets.manifest import patients_in_several, split_named
from ctssl.files.text import read_json

FEWEST = 10  # patients below which all of them are needed for training


def divide(cases: list[Case], hold_out: float | list[str] | None, seed: int) -> tuple[list[Case], list[Case]]:
    """Divide cases into training and held-out ones. The scans of one patient stay together.

    Args:
        cases: all of them.
        hold_out: share of the patients, or names of cases. None: those that the column `split` calls test (or,
            where it calls none so, val), or a fifth.
        seed: of the draw.

    Raises `ValueError` where a name is unknown, nothing is left to train on, or a patient would be on both sides.
    """
    if hold_out is None and any(case.split for case in cases):
        if blank := [case.name for case in cases if not case.split]:
            raise ValueError(
                f"{len(blank)} cases have no split ({', '.join(blank[:5])}): write train or test in that column"
            )
        sides = {case.name: side_of(case) for case in cases}
        last = "test" if "test" in sides.values() else "val"  # nobody else is left to judge on
        hold_out = [name for name, side in sides.items() if side == last]
    hold_out = 0.2 if hold_out is None else hold_out
    if isinstance(hold_out, (int, float)):
        if not 0 <= hold_out < 1:
            raise ValueError(f"hold_out={hold_out}: a share from 0 to below 1, or a list of case names")
        if hold_out:
            check_no_test(cases, "holding out a share")
        everyone = patients(cases)
        count = 0 if hold_out == 0 else max(1, round(hold_out * len(everyone)))
        drawn = set(np.random.default_rng(seed).choice(everyone, count, replace=False).tolist())
        chosen = {case.name for case in cases if case.patient in drawn}
    else:
        named = [hold_out] if isinstance(hold_out, str) else hold_out
        chosen = {str(name) for name in named}
        unknown = chosen - {c.name for c in cases}
        if unknown:
            raise ValueError(
                f"cannot hold out {sorted(unknown)}: no such cases; they are called {cases[0].name!r} and so on"
            )
    train, held = [c for c in cases if c.name not in chosen], [c for c in cases if c.name in chosen]
    if not train:
        raise ValueError(
            f"nothing is left to train on: {len(cases)} cases, {len(chosen)} held out; to train on all, hold out "
            "none (--hold-out 0)"
        )
    if both := patients_in_several((case.patient, str(case.name in chosen)) for case in cases):
        raise ValueError(
            f"patients {', '.join(both[:5])} have scans on both sides; hold out all scans of a patient, or none"
        )
    return train, held


def check_no_test(cases: list[Case], how: str) -> None:
    """Raise `ValueError` if the column `split` calls cases test: a draw over all cases (`how`) would train on some."""
    if marked := [case.name for case in cases if case.split and side_of(case) == "test"]:
        raise ValueError(
            f"{len(marked)} cases are test in the column split ({', '.join(marked[:5])}), and {how} would train on some of "
            "them; take these rows, or the column, out of the table"
        )


def side_of(case: Case) -> str:
    """Return `train`, `val` or `test`. Raises `ValueError` for another word in the column `split`."""
    return split_named(case.split, where=case.name)


def patients(cases: Iterable[Any]) -> list[str]:
    """Return every patient once, in the order of the cases, or of other records of a `patient`."""
    return list(dict.fromkeys(case.patient for case in cases))


def part(cases: list[Case], folds: int, fold: int, seed: int) -> list[str]:
    """Return the names of the cases of fold number `fold` when the patients are divided into `folds` equal parts."""
    everyone = patients(cases)
    if not 2 <= folds <= len(everyone) or not 0 <= fold < folds:
        raise ValueError(
            f"fold {fold} of {folds}: 2 to {len(everyone)} folds (there are so many patients), counted from 0"
        )
    mine = set(np.random.default_rng(seed).permutation(everyone)[fold::folds].tolist())
    return [case.name for case in cases if case.patient in mine]


def read_splits(path: str | os.PathLike) -> list[dict[str, list[str]]]:
    """Return the folds of nnU-Net's `splits_final.json`, each with the names of its `train` and `val` cases.

    Raises `ValueError` for a file of another form.
    """
    found = read_json(Path(path))
    folds = found if isinstance(found, list) else []
    sides = [fold.get(side) for fold in folds if isinstance(fold, dict) for side in ("train", "val")]
    named = all(isinstance(side, list) and all(isinstance(name, str) for name in side) for side in sides)
    if not folds or len(sides) != 2 * len(folds) or not named:
        raise ValueError(
            f"{path} must hold a list of folds with train and val, as nnU-Net's splits_final.json does"
        )
    return folds


def count_folds(folds: int | str | os.PathLike) -> int:
    """Return the number of folds, given itself or as nnU-Net's `splits_final.json`."""
    return folds if isinstance(folds, int) else len(read_splits(folds))


def held_out_in(cases: list[Case], folds: int | str | os.PathLike, fold: int, seed: int) -> list[str]:
    """Return the names of the cases of a fold: of equal parts of the patients, or the `val` cases of nnU-Net's.

    Raises `ValueError` for a fold that does not exist, or splits that do not name exactly these cases.
    """
    if isinstance(folds, int):
        check_no_test(cases, "cross-validation")
        return part(cases, folds, fold, seed)
    splits = read_splits(folds)
    if not 0 <= fold < len(splits):
        raise ValueError(f"fold {fold}: {folds} has {len(splits)} folds, counted from 0")
    train, val, here = set(splits[fold]["train"]), set(splits[fold]["val"]), {case.name for case in cases}
    wrong = sorted(here ^ (train | val)) + sorted(train & val)
    if wrong:
        raise ValueError(
            f"fold {fold} of {folds} does not name each of the {len(here)} cases once: {', '.join(wrong[:5])}; the "
            "splits belong to another dataset, or cases came or went since"
        )
    return sorted(val)


def draw_patients(cases: list[Case], count: int, seed: int) -> list[Case]:
    """Return the cases of `count` patients, drawn by the seed."""
    everyone = patients(cases)
    if not 1 <= count <= len(everyone):
        raise ValueError(f"few_shot={count}: there are {len(everyone)} patients to train on")
    mine = set(np.random.default_rng(seed).permutation(everyone)[:count].tolist())
    return [case for case in cases if case.patient in mine]


def validation(cases: list[Case], share: float, seed: int) -> list[str]:
    """Draw the validation cases: those of `share` of the patients, at least one; none of fewer than ten patients."""
    everyone = patients(cases)
    if share <= 0 or len(everyone) < FEWEST:
        return []
    drawn = np.random.default_rng([seed, 1]).permutation(everyone)[: max(1, round(share * len(everyone)))]
    return [case.name for case in cases if case.patient in set(drawn.tolist())]
