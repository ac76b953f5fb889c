"""Who is held out and who validates: whole patients, by share, by name, by a table."""

import json
from pathlib import Path

import pytest

from ctssl.datasets import splits
from ctssl.datasets.case import Case
from ctssl.datasets.layouts import find_cases


def test_validation_patients_are_of_the_training_side_and_few_patients_are_all_trained_on():
    cases = [case(f"{p}{i}", patient=p) for p in "abcdefghijkl" for i in range(2)]
    chosen = splits.validation(cases, 0.2, 0)
    assert len(chosen) == 4 and len({name[0] for name in chosen}) == 2
    assert splits.validation(cases[:18], 0.2, 0) == [] == splits.validation(cases, 0.0, 0)


def test_cases_are_divided_by_share_or_by_name(labelled):
    cases = find_cases(labelled).cases
    train, held = splits.divide(cases, 0.3, 0)
    assert len(held) == 1 and len(train) == 2 and splits.divide(cases, 0.3, 0) == (train, held)
    assert [c.name for c in splits.divide(cases, ["case2"], 0)[1]] == ["case2"]
    for wrong, words in (
        (["nobody"], "no such cases"),
        (1.5, "share from 0"),
        (["case0", "case1", "case2"], "nothing is left"),
    ):
        with pytest.raises(ValueError, match=words):
            splits.divide(cases, wrong, 0)


def case(name, patient="", split=""):
    return Case(name, Path(name), Path(name), patient=patient or name, split=split)


def test_the_scans_of_a_patient_stay_together():
    cases = [case(f"{p}{i}", patient=p) for p in "abcdefgh" for i in range(2)]
    for seed in range(5):
        train, held = splits.divide(cases, 0.25, seed)
        assert len(held) == 4 and not {c.patient for c in train} & {c.patient for c in held}
    with pytest.raises(ValueError, match="scans on both sides"):
        splits.divide(cases, ["a0"], 0)
    folds = [set(splits.part(cases, 3, fold, 0)) for fold in range(3)]
    assert sorted(len(f) for f in folds) == [4, 6, 6] and set.union(*folds) == {c.name for c in cases}
    with pytest.raises(ValueError, match="fold 3 of 3"):
        splits.part(cases, 3, 3, 0)
    some = splits.draw_patients(cases, 3, 0)
    assert len(some) == 6 and len({c.patient for c in some}) == 3
    with pytest.raises(ValueError, match="8 patients"):
        splits.draw_patients(cases, 9, 0)


def test_a_table_says_which_cases_are_held_out():
    cases = [case("a", split="train"), case("b", split="test"), case("c", split="training")]
    assert [c.name for c in splits.divide(cases, None, 0)[1]] == ["b"]
    assert splits.divide(cases, 0, 0)[1] == []


def test_the_folds_of_nnunet_hold_out_their_val_cases(tmp_path):
    cases, path = (
        [Case(name, Path(name), Path(name), patient=name) for name in "abc"],
        tmp_path / "splits_final.json",
    )
    path.write_text(json.dumps([{"train": ["a", "b"], "val": ["c"]}, {"train": ["c"], "val": ["a", "b"]}]))
    assert splits.count_folds(path) == 2
    assert [splits.held_out_in(cases, path, fold, 0) for fold in (0, 1)] == [["c"], ["a", "b"]]
    with pytest.raises(ValueError, match="has 2 folds"):
        splits.held_out_in(cases, path, 2, 0)
    for missing in (cases[:2], [*cases, Case("d", Path("d"), Path("d"), patient="d")]):
        with pytest.raises(ValueError, match="another dataset"):
            splits.held_out_in(missing, path, 0, 0)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="list of folds"):
        splits.read_splits(path)


def test_no_draw_trains_on_cases_that_the_table_calls_test():
    cases = [case(n, split="test" if n in "ij" else "train") for n in "abcdefghij"]
    for draw in (lambda: splits.divide(cases, 0.2, 0), lambda: splits.held_out_in(cases, 5, 0, 0)):
        with pytest.raises(ValueError, match=r"2 cases are test in the column split \(i, j\)"):
            draw()
