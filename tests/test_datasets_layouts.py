"""Every layout of labelled scans gives the same cases."""

import csv

import numpy as np
import pytest

import ctssl
from ctssl import datasets
from ctssl.datasets.case import read_case
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.scans import list_scans
from ctssl.scan_checks import ScanWarning
from ctssl.volume.volume import Volume
from tests.support.folders import described


def test_folders_apart_and_the_names_of_nnunet(labelled):
    apart = find_cases(images=labelled / "images", labels=labelled / "labels").cases
    assert [c.name for c in apart] == ["case0", "case1", "case2"]
    for i in range(3):
        (labelled / "images" / f"case{i}.nii.gz").rename(labelled / "images" / f"case{i}_0000.nii.gz")
    (labelled / "images").rename(labelled / "imagesTr")
    (labelled / "labels").rename(labelled / "labelsTr")
    assert [c.name for c in find_cases(labelled).cases] == ["case0", "case1", "case2"]


def names(data, **kwargs):
    return [case.name for case in find_cases(data, **kwargs).cases]


def test_nnunet(labelled):
    for i in range(3):
        (labelled / "images" / f"case{i}.nii.gz").rename(labelled / "images" / f"case{i}_0000.nii.gz")
    (labelled / "images").rename(labelled / "imagesTr")
    (labelled / "labels").rename(labelled / "labelsTr")
    described(labelled, channel_names={"0": "CT"}, labels={"background": 0, "tumour": 1}, numTraining=3)
    found = find_cases(labelled)
    assert [c.name for c in found.cases] == ["case0", "case1", "case2"] and found.names == {1: "tumour"}
    described(labelled, channel_names={"0": "CT", "1": "PET"}, labels={"background": 0, "tumour": 1})
    with pytest.raises(ValueError, match=r"case0 has 1 channel, dataset\.json names 2"):
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


@pytest.mark.parametrize("named", [False, True])
def test_masks_of_0_and_255_have_one_label(labelled, named):
    """They are not of 256 classes, whether a `dataset.json` names the 255 or not."""
    if named:
        described(labelled, channel_names={"0": "CT"}, labels={"background": 0, "tumour": 255})
    before = [read_case(case)[1].array for case in find_cases(labelled).cases]
    for i in range(3):
        mask = ctssl.read(labelled / "labels" / f"case{i}.nii.gz")
        Volume((mask.array * 255).astype(np.uint8), mask.affine).save(
            labelled / "labels" / f"case{i}.nii.gz", overwrite=True
        )
    found = find_cases(labelled)
    assert found.names == ({1: "tumour"} if named else {})
    assert not [p for p in problems(found) if p.code == "labels"]
    for case, mask in zip(found.cases, before, strict=True):
        np.testing.assert_array_equal(read_case(case)[1].array, mask)
    (row, *_) = ctssl.evaluate(labelled / "labels", labelled / "labels").cases
    assert (row["label"], row["dsc"]) == (1, 1.0)


def test_numbers_that_are_left_out_are_no_labels(labelled):
    """A model would have an output for each of them."""
    described(labelled, labels={"background": 0, "air": 1, "tumour": 3, "bone": 7})
    with pytest.raises(ValueError, match="names the labels 1, 3, 7; number them 1 to 3"):
        find_cases(labelled)


def test_labels_that_nothing_names_must_be_counted_from_one(labelled):
    for i in range(3):
        mask = ctssl.read(labelled / "labels" / f"case{i}.nii.gz")
        Volume((mask.array * 254).astype(np.uint8), mask.affine).save(
            labelled / "labels" / f"case{i}.nii.gz", overwrite=True
        )
    found = problems(find_cases(labelled), whole=False)
    assert [p.level for p in found] == ["error"] * 3 and "holds [254], but the 1 labels" in found[0].message


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


@pytest.mark.slow
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


def test_patients_without_a_structure_or_with_two_kinds_are_named(tmp_path):
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")
    import pydicom

    from tests.support.dicom import square, write_rtstruct, write_series

    for name in ("bare", "both", "drawn"):
        write_series(tmp_path / name / "ct", uid=f"1.2.{len(name)}")
        if name != "bare":
            rois = {"a": [square(-9, -8, 30.0)]}
            write_rtstruct(tmp_path / name / "rs.dcm", rois, series=f"1.2.{len(name)}", patient="p")
    seg = pydicom.dcmread(tmp_path / "both" / "rs.dcm")
    seg.Modality, seg.SOPInstanceUID = "SEG", "1.2.10"
    seg.save_as(tmp_path / "both" / "seg.dcm")
    with pytest.warns(UserWarning) as said:
        found = find_cases(tmp_path)
    assert [case.name for case in found.cases] == ["both", "drawn"]
    assert found.cases[0].label.name == "rs.dcm"
    told = " ".join(str(one.message) for one in said)
    assert "1 patients have a CT and no RTSTRUCT or SEG, and are left out: bare" in told
    assert "1 patients have an RTSTRUCT and a SEG, and the RTSTRUCT is taken" in told


def test_totalsegmentator(labelled, tmp_path):
    root = tmp_path / "total"
    for i in range(3):
        folder = root / f"s000{i}" / "segmentations"
        folder.mkdir(parents=True)
        (labelled / "images" / f"case{i}.nii.gz").rename(folder.parent / "ct.nii.gz")
        (labelled / "labels" / f"case{i}.nii.gz").rename(folder / "tumour.nii.gz")
    found = find_cases(root)
    assert [case.name for case in found.cases] == ["s0000", "s0001", "s0002"]
    assert found.names == {1: "tumour"} and problems(found) == []
    scan, mask = read_case(found.cases[0])
    assert scan.shape == mask.shape and mask.array.any()
    other = root / "s0001" / "segmentations" / "liver.nii.gz"
    mask.on_grid(np.zeros(mask.shape, np.uint8)).save(other)
    with pytest.raises(ValueError, match="several structures.*--roi.*liver, tumour"):
        find_cases(root)
    with pytest.raises(ValueError, match="no structure 'spleen'.*liver, tumour"):
        find_cases(root, roi="spleen")
    with pytest.warns(
        UserWarning, match="2 patients have no segmentations/liver, and are left out: s0000, s0002"
    ):
        found = find_cases(root, roi="liver")
    assert [case.label for case in found.cases] == [other] and found.names == {1: "liver"}


def test_a_structure_that_a_layout_does_not_name_is_refused(labelled):
    with pytest.raises(ValueError, match="roi 'liver' names a structure of an RTSTRUCT"):
        find_cases(labelled, roi="liver")


def test_a_folder_of_no_known_layout_says_which_are_known(tmp_path):
    (tmp_path / "scans").mkdir()
    with pytest.raises(FileNotFoundError, match="Decathlon"):
        find_cases(tmp_path)


@pytest.mark.parametrize("numbers", [("0001",), ("0000", "0001", "0002")])
def test_numbers_of_four_digits_are_names_where_the_masks_have_them_too(labelled, tmp_path, numbers):
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
        for number in numbers:
            (tmp_path / kind / f"case_{number}.nii.gz").write_bytes(
                (labelled / kind / "case0.nii.gz").read_bytes()
            )
    assert [case.name for case in find_cases(tmp_path).cases] == [f"case_{number}" for number in numbers]
    if len(numbers) > 1:  # without masks they may be channels: nothing is segmented as a case of its own
        with pytest.raises(ValueError, match="is a second channel"):
            list_scans(tmp_path / "images")
    (tmp_path / "labels" / "case.nii.gz").write_bytes((labelled / "labels" / "case0.nii.gz").read_bytes())
    (tmp_path / "labels" / "case_0001.nii.gz").unlink()
    with pytest.raises(ValueError, match="is a second channel"):
        find_cases(tmp_path)


@pytest.mark.parametrize(
    "name, known", [("Patient", "patient"), ("patient_id", "patient"), ("Split", "split")]
)
def test_a_column_that_is_spelt_otherwise_is_not_ignored(labelled, name, known):
    row = {"image": "images/case0.nii.gz", "label": "labels/case0.nii.gz", name: "x"}
    with pytest.raises(ValueError, match=f"has the column {name}; call it {known}"):
        find_cases(write_table(labelled / "cases.csv", [row]))
    row[known] = "train"
    assert find_cases(write_table(labelled / "cases.csv", [row])).cases[0].facts == {name: "x"}


def test_the_patient_of_a_series_in_a_table_is_that_of_its_header(tmp_path, data):
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")
    (case,) = find_cases(data / "dicom").cases
    rows = [{"id": name, "image": str(case.image), "label": str(case.label)} for name in "ab"]
    found = find_cases(write_table(tmp_path / "cases.csv", rows)).cases
    assert [one.patient for one in found] == [case.patient] * 2 and case.patient not in ("a", "b")


def test_masks_without_a_scan_are_named(labelled, capsys):
    (labelled / "images" / "case1.nii.gz").unlink()
    with pytest.warns(
        ScanWarning, match="1 masks in .*labels have no scan of their name in .*images .*: case1"
    ):
        assert [case.name for case in find_cases(labelled).cases] == ["case0", "case2"]


@pytest.mark.parametrize("mark", [";", "\t"])
def test_a_table_of_a_spreadsheet_in_any_language_is_read(labelled, mark):
    lines = [mark.join(("image", "label", "patient", '"age, years"'))]
    lines += [mark.join((f"images/case{n}.nii.gz", f"labels/case{n}.nii.gz", f"p{n}", "7")) for n in range(2)]
    (labelled / "cases.csv").write_text("\n".join([*lines, mark * 3, ""]))
    assert [case.patient for case in find_cases(labelled / "cases.csv").cases] == ["p0", "p1"]
