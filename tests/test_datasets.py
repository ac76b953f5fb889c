"""Every layout of labelled scans gives the same cases, and every fault of theirs is named."""

import csv
import json

import numpy as np
import pytest

import ctssl
from ctssl import datasets
from ctssl.cli.common import scans_of
from ctssl.cli.main import main
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.volume.volume import Volume


def names(data, **kwargs):
    return [case.name for case in find_cases(data, **kwargs).cases]


def described(folder, **content):
    (folder / "dataset.json").write_text(json.dumps(content))


def test_nnunet(labelled):
    for i in range(3):
        (labelled / "images" / f"case{i}.nii.gz").rename(labelled / "images" / f"case{i}_0000.nii.gz")
    (labelled / "images").rename(labelled / "imagesTr")
    (labelled / "labels").rename(labelled / "labelsTr")
    described(labelled, channel_names={"0": "CT"}, labels={"background": 0, "tumour": 1}, numTraining=3)
    found = find_cases(labelled)
    assert [c.name for c in found.cases] == ["case0", "case1", "case2"] and found.names == {1: "tumour"}
    described(labelled, channel_names={"0": "CT", "1": "PET"}, labels={"background": 0, "tumour": 1})
    with pytest.raises(ValueError, match="one CT"):
        find_cases(labelled)
    described(labelled, channel_names={"0": "CT"}, labels={"background": 0, "whole": [1, 2]})
    with pytest.raises(ValueError, match="regions"):
        find_cases(labelled)
    (labelled / "dataset.json").write_text("{")
    with pytest.raises(ValueError, match="not readable JSON"):
        find_cases(labelled)


def test_decathlon(labelled):
    entries = [{"image": f"./images/case{i}.nii.gz", "label": f"./labels/case{i}.nii.gz"} for i in (2, 0)]
    described(labelled, modality={"0": "CT"}, labels={"0": "background", "1": "cancer"}, training=entries)
    found = find_cases(labelled)
    assert [c.name for c in found.cases] == ["case2", "case0"] and found.names == {1: "cancer"}
    for wrong, words in (
        ([{"image": "images/case9.nii.gz", "label": "labels/case0.nii.gz"}], "not there"),
        ([entries[0], entries[0]], "more than once"),
        (["case0"], "image and label"),
        ([], "no case"),
    ):
        described(labelled, labels={}, training=wrong)
        with pytest.raises((ValueError, FileNotFoundError), match=words):
            find_cases(labelled)


def write_table(path, rows):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_the_first_nnunet_lists_cases_and_keeps_channels(labelled):
    for i in range(3):
        (labelled / "images" / f"case{i}.nii.gz").rename(labelled / "images" / f"case{i}_0000.nii.gz")
    entries = [{"image": f"./images/case{i}.nii.gz", "label": f"./labels/case{i}.nii.gz"} for i in range(3)]
    described(labelled, modality={"0": "CT"}, labels={"0": "background", "1": "tumour"}, training=entries)
    cases = find_cases(labelled).cases
    assert [case.name for case in cases] == ["case0", "case1", "case2"] and cases[
        0
    ].image.name == "case0_0000.nii.gz"


def test_labels_that_nothing_names_must_be_counted_from_one(labelled):
    """A mask of 0 and 255 is not one of 256 classes."""
    for i in range(3):
        mask = ctssl.read(labelled / "labels" / f"case{i}.nii.gz")
        Volume((mask.array * 255).astype(np.uint8), mask.affine).save(
            labelled / "labels" / f"case{i}.nii.gz", overwrite=True
        )
    found = problems(find_cases(labelled), whole=False)
    assert [p.level for p in found] == ["error"] * 3 and "holds [255], but the 1 labels" in found[0].message


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


def test_it_is_said_when_nobody_knows_what_a_model_has_seen(labelled, encoder, tmp_path):
    folder = encoder.save_pretrained(tmp_path / "theirs")
    (found,) = problems(find_cases(labelled), model=folder)
    assert found.code == "unknown-pretraining" and "cannot be told" in found.message


def test_a_table(labelled):
    def row(i, **more):
        return {
            "image": f"images/case{i}.nii.gz",
            "label": f"labels/case{i}.nii.gz",
            "patient": f"p{i % 2}",
            "split": "train",
            "kernel": "B30f",
            **more,
        }

    table = write_table(labelled / "cases.csv", [row(i) for i in range(3)])
    cases = find_cases(table).cases
    assert [(c.name, c.patient, c.split) for c in cases] == [
        ("case0", "p0", "train"),
        ("case1", "p1", "train"),
        ("case2", "p0", "train"),
    ]
    assert cases[0].facts == {"kernel": "B30f"}
    write_table(table, [row(0, id="a"), row(1, id="../b")])
    with pytest.raises(ValueError, match="cannot be the name"):
        find_cases(table)
    write_table(table, [row(0), row(2, split="test")])
    (found,) = [p for p in problems(find_cases(table)) if p.code == "patient"]
    assert found.level == "error" and "p0" in found.message
    write_table(table, [{"picture": "x"}])
    with pytest.raises(ValueError, match="needed: image, label"):
        find_cases(table)


def test_dicom_patients(tmp_path, data):
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")
    from ctssl.metrics import dsc

    (case,) = find_cases(data / "dicom").cases
    assert case.name == "STS_008" and case.label.is_file()
    scan, mask = datasets.read_case(case)
    truth = ctssl.read(data / "sarcoma" / "labels" / "STS_008.nii.gz")
    from ctssl.volume.grids import resample

    seen = resample(mask.array > 0, mask.affine, truth.shape, truth.affine) > 0.5
    covered = resample(np.ones(scan.shape, np.float32), scan.affine, truth.shape, truth.affine) > 0.5
    assert dsc(seen & covered, (truth.array > 0) & covered) >= 0.95
    assert problems(find_cases(data / "dicom")) == []
    with pytest.raises(ValueError, match="no structure 'nothing'"):
        datasets.read_case(find_cases(data / "dicom", roi="nothing").cases[0])


def test_a_folder_of_no_known_layout_says_which_are_known(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(FileNotFoundError, match="Decathlon"):
        find_cases(tmp_path)


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
        datasets.refuse(list(found.values()), 11)
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


def test_a_scan_of_the_pretraining_is_recognised_by_its_series(data):
    """The self models have seen STS_008 cut and as NIfTI; the whole DICOM series has other voxels."""
    pytest.importorskip("pydicom")
    cases = find_cases(data / "dicom")
    (found,) = problems(cases, model="vit-self-mim")
    assert (found.code, found.case) == ("pretrained", "STS_008")
    assert problems(cases, model="vit-wild-mim") == []


def test_scans_of_the_pretraining_are_recognised_and_no_others(data):
    for model, group, expected in (("swin-self-mim", "sarcoma", 26), ("swin-wild-mim", "sarcoma", 0)):
        found = problems(find_cases(data / group), model=model)
        assert [p.code for p in found] == ["pretrained"] * expected
        from training.data.corpora import split

        assert not {p.case for p in found} & set(split("test"))


@pytest.mark.parametrize("numbers", [("0001",), ("0000", "0001", "0002")])
def test_numbers_of_four_digits_are_names_where_the_masks_have_them_too(labelled, tmp_path, numbers):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for number in numbers:
            (tmp_path / kind / f"case_{number}.nii.gz").write_bytes(
                (labelled / kind / "case0.nii.gz").read_bytes()
            )
    assert [case.name for case in find_cases(tmp_path).cases] == [f"case_{number}" for number in numbers]
    if len(numbers) > 1:  # a folder of channels alone has them in nnU-Net's way
        assert sorted(scans_of(tmp_path / "images")) == [f"case_{number}" for number in numbers]
    (tmp_path / "labels" / "case.nii.gz").write_bytes((labelled / "labels" / "case0.nii.gz").read_bytes())
    (tmp_path / "labels" / "case_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match="is a second channel"):
        find_cases(tmp_path)
