"""Every fault of labelled scans is named."""

import json

import numpy as np
import pytest

import ctssl
from ctssl import datasets
from ctssl.cli.main import main
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.volume.volume import Volume
from tests.support.folders import described


def test_a_label_of_one_case_alone_is_doubted(labelled):
    rng = np.random.default_rng(0)
    for i in range(3, 6):
        scan, mask = (ctssl.read(labelled / kind / "case0.nii.gz") for kind in ("images", "labels"))
        noisy = scan.array + rng.normal(0, 5, scan.shape).astype(np.float32)
        Volume(noisy, scan.affine).save(labelled / "images" / f"case{i}.nii.gz")
        array = mask.array.astype(np.uint8)
        if i == 5:
            array[0, 0, 0] = 2
        Volume(array, scan.affine).save(labelled / "labels" / f"case{i}.nii.gz")
    (found,) = [p for p in problems(find_cases(labelled)) if p.code == "labels"]
    assert (found.case, found.level) == ("case5", "warning") and "no other mask holds [2]" in found.message


def test_everything_wrong_is_named_at_once_even_a_patient_on_both_sides(labelled, tmp_path):
    rows = [
        f"images/case{i}.nii.gz,labels/case{i}.nii.gz,p{i % 2},{'train' if i else 'test'}" for i in range(3)
    ]
    (labelled / "cases.csv").write_text("image,label,patient,split\n" + "\n".join(rows) + "\n")
    (labelled / "labels" / "case1.nii.gz").write_bytes(b"no NIfTI")
    with pytest.raises(ValueError, match="2 of 3 cases cannot be used") as refused:
        ctssl.finetune(labelled / "cases.csv", out=tmp_path / "m", progress=False)
    assert "patient p0 is in" in str(refused.value) and "case1" in str(refused.value)


def test_a_case_without_split_is_not_held_out_by_silence(labelled, tmp_path):
    rows = [
        f"images/case{i}.nii.gz,labels/case{i}.nii.gz,{split}"
        for i, split in enumerate(["train", "test", ""])
    ]
    (labelled / "cases.csv").write_text("image,label,split\n" + "\n".join(rows) + "\n")
    with pytest.raises(ValueError, match=r"1 cases have no split \(case2\)"):
        ctssl.finetune(labelled / "cases.csv", out=tmp_path / "m", progress=False)


def test_every_fault_of_a_case_is_named(labelled, ball):
    scan, mask = ball

    def put(kind, name, volume):
        volume.save(labelled / kind / f"{name}.nii.gz", overwrite=True)

    rng = np.random.default_rng(9)

    def other():
        return Volume(scan.array + rng.normal(0, 5, scan.shape).astype(np.float32), scan.affine)

    put("images", "empty", other())
    put("labels", "empty", Volume(np.zeros_like(mask.array), mask.affine))
    put("images", "twice", ctssl.read(labelled / "images" / "case0.nii.gz"))
    put("labels", "twice", mask)
    put("images", "windowed", Volume(np.clip((scan.array + 500) / 1000, 0, 1), scan.affine))
    put("labels", "windowed", mask)
    put("images", "shape", other())
    put("labels", "shape", Volume(mask.array[:-1], mask.affine))
    put("images", "apart", other())
    moved = mask.affine.copy()
    moved[0, 3] += 7
    put("labels", "apart", Volume(mask.array, moved))
    put("images", "values", other())
    put("labels", "values", Volume(mask.array * 0.5, mask.affine))
    put("images", "number", other())
    put("labels", "number", Volume(mask.array * 3, mask.affine))
    put("images", "broken", other())
    (labelled / "labels" / "broken.nii.gz").write_bytes(b"no NIfTI")
    described(labelled, labels={"background": 0, "tumour": 1})
    found = {p.case: p for p in problems(find_cases(labelled))}
    expected = {
        "empty": "warning",
        "twice": "error",
        "windowed": "error",
        "shape": "error",
        "apart": "error",
        "values": "error",
        "number": "error",
        "broken": "error",
    }
    assert {case: p.level for case, p in found.items()} == expected
    assert "7.0 mm apart" in found["apart"].message and "case0" in found["twice"].message
    with pytest.raises(ValueError) as refused:
        datasets.check_problems(list(found.values()), 11)
    assert "7 of 11" in str(refused.value) and all(
        case in str(refused.value) for case in expected if case != "empty"
    )


def test_finetune_refuses_naming_all_cases_and_check_says_the_same(labelled, tmp_path, capsys):
    for i in (0, 1):
        (labelled / "labels" / f"case{i}.nii.gz").write_bytes(b"")
    with pytest.raises(ValueError, match=r"2 of 3 cases cannot be used:\n  case0: .*\n  case1: "):
        ctssl.finetune(labelled, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert main(["check", str(labelled), "--json"]) == 2
    shown = json.loads(capsys.readouterr().out)
    assert shown["cases"] == ["case0", "case1", "case2"] and [p["case"] for p in shown["problems"]] == [
        "case0",
        "case1",
    ]
