"""Masks of another patient, outside the body, and tables with a fault."""

import time
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest

from ctssl.cli.main import main
from ctssl.datasets import checks
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.volume.volume import Volume
from tests.support.tiny import QUICK_FLAGS


def other_patient(labelled: Path, ball, how: str) -> str:
    """Give case1 a mask that is not its own; the sentence that says so."""
    mask = ball[1]
    array, affine = mask.array, mask.affine.copy()
    if how == "shape":
        array = np.pad(array, ((0, 0), (0, 0), (0, 4)))
    elif how == "place":
        affine[2, 3] += 35
    elif how == "spacing":
        affine[2, 2] *= 1.2
    else:
        array = np.zeros_like(array)
        array[:2, :2, :2] = 1  # a corner, in the air
    Volume(array, affine).save(labelled / "labels" / "case1.nii.gz", overwrite=True)
    return {
        "shape": "its mask",
        "place": "35.0 mm apart",
        "spacing": "mm apart",
        "outside": "in air that no tissue encloses",
    }[how]


@pytest.mark.parametrize("how", ["shape", "place", "spacing", "outside"])
def test_the_label_of_another_patient_is_noticed(labelled, ball, tiny_folder, tmp_path, capsys, how):
    words = other_patient(labelled, ball, how)
    (found,) = problems(find_cases(labelled))
    assert found.case == "case1" and words in found.message
    assert found.level == ("warning" if how == "outside" else "error")
    assert main(["check", str(labelled)]) == (0 if how == "outside" else 2)
    said = capsys.readouterr()
    assert f"case1: {found.message}" in said.out and "Traceback" not in said.err
    if how != "outside":
        assert (
            main(
                [
                    "finetune",
                    str(labelled),
                    "--model",
                    str(tiny_folder),
                    "--out",
                    str(tmp_path / "m"),
                    *QUICK_FLAGS,
                ]
            )
            == 2
        )
        assert words in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_a_mask_in_the_lung_or_in_an_airway_is_inside_the_body(ball):
    from ctssl.scan_checks import outside_body

    scan, mask = ball
    hollow = scan.array.copy()
    hollow[15:21, 12:18] = -1000  # a hole through all slices, as the trachea is
    airway = np.zeros_like(mask.array)
    airway[16:20, 13:17] = 1
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):  # however the scan lies in its file
        affine = np.eye(4)
        affine[:3, :3] = scan.affine[:3, :3][:, axes]
        turned = [Volume(np.transpose(a, axes), affine) for a in (hollow, airway)]
        assert not outside_body(*turned)
    corner = np.zeros_like(mask.array)
    corner[:2, :2] = 1
    assert outside_body(Volume(hollow, scan.affine), Volume(corner, scan.affine))
    assert not outside_body(scan, mask) and not outside_body(scan, Volume(mask.array * 0, mask.affine))


def bodies(folder: Path, changes: dict[int, str]) -> Path:
    """Fifteen bodies with an organ on the right, its mask changed in some."""
    x, y, z = np.meshgrid(np.arange(48), np.arange(36), np.arange(12), indexing="ij")
    body = ((x - 23.5) / 22) ** 2 + ((y - 17.5) / 16) ** 2 < 1
    affine = np.diag([4.0, 4.0, 5.0, 1.0])
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for i in range(15):
        rng = np.random.default_rng(i)
        organ = (x - 34 - i % 3) ** 2 + (y - 16) ** 2 + (z - 5 - i % 2) ** 2 < 16
        hu = np.where(organ, 60.0, np.where(body, -100.0, -1000.0)) + rng.normal(0, 10, x.shape)
        mask = {"": organ, "flip": organ[::-1], "shift": np.roll(organ, 4, 0)}[changes.get(i, "")]
        Volume(hu.astype(np.float32), affine).save(folder / "images" / f"c{i}.nii.gz")
        Volume(mask.astype(np.uint8), affine).save(folder / "labels" / f"c{i}.nii.gz")
    return folder


def test_masks_that_are_flipped_or_moved_are_unlike_the_others(tmp_path):
    found = problems(find_cases(bodies(tmp_path / "data", {4: "flip", 9: "shift"})))
    assert {(p.level, p.code, p.case) for p in found} == {
        ("warning", "unlike", "c4"),
        ("warning", "unlike", "c9"),
    }
    said = {p.case: p.message for p in found}
    assert "46 mm left of the middle of the body, in the other 14 cases 46 mm right of it" in said["c4"]
    assert "has a median of -100 HU, in the other 14 cases 60 HU" in said["c4"]
    assert "HU" in said["c9"] and "mm left" not in said["c9"] and "Look at it" in said["c9"]


def test_cases_that_are_like_one_another_or_few_are_not_unlike(tmp_path):
    assert problems(find_cases(bodies(tmp_path / "right", {}))) == []
    few = find_cases(bodies(tmp_path / "few", {4: "flip"}))
    assert problems(replace(few, cases=few.cases[:14])) == []


@pytest.mark.slow
@pytest.mark.parametrize("group", ["sarcoma", "lung_radiogenomics", "lung_nodules", "lung_radiomics_nc"])
def test_true_masks_are_not_called_unlike_the_others(data, group):
    """Of 570 cases in five groups, five are: air in the oesophagus or the larynx, all in the head and neck."""
    assert not [p for p in problems(find_cases(data / group)) if p.code in ("unlike", "outside")]


def test_a_mask_file_with_two_geometries_is_noticed(labelled, ball):
    image = nibabel.Nifti1Image(ball[1].array, ball[1].affine)
    image.set_sform(ball[1].affine, code=1)
    moved = ball[1].affine.copy()
    moved[0, 3] += 15
    image.set_qform(moved, code=1)
    nibabel.save(image, labelled / "labels" / "case1.nii.gz")
    (found,) = problems(find_cases(labelled))
    assert (found.case, found.level, found.code) == ("case1", "warning", "two-geometries")
    assert found.message.startswith("its mask: sform and qform lie up to 15.0 mm apart")


def test_what_is_left_out_of_a_dicom_mask_is_shown(tmp_path, capsys):
    pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")
    from tests.support.dicom import write_rtstruct, write_series

    write_series(tmp_path / "data" / "p1" / "ct")
    inside = [(x, y, 32.5) for x, y in ((-9.8, -19.5), (-8.7, -19.5), (-8.7, -17.0), (-9.8, -17.0))]
    far = [(x, y + 90, z) for x, y, z in inside]
    write_rtstruct(tmp_path / "data" / "p1" / "rs.dcm", {"GTV": [inside, far]}, patient="p")
    main(["check", str(tmp_path / "data")])
    assert "1 of 2 contours of 'GTV'" in capsys.readouterr().out


def test_a_long_table_with_a_fault_is_refused_before_scans_are_read(labelled, monkeypatch, capsys):
    """Names and splits are looked at first: nobody waits for ten thousand scans to hear of a missing file."""
    monkeypatch.setattr(checks, "read_case", lambda case: pytest.fail("a scan was read"))
    rows = [f"c{i},images/case{i % 3}.nii.gz,labels/case{i % 3}.nii.gz" for i in range(5000)]
    began = time.monotonic()
    for wrong in (
        "c1,images/case0.nii.gz,labels/case0.nii.gz",
        "z,images/gone.nii.gz,labels/case0.nii.gz",
        "z,images/case0.nii.gz,",
    ):
        (labelled / "cases.csv").write_text("\n".join(["id,image,label", *rows, wrong]) + "\n")
        assert main(["check", str(labelled / "cases.csv")]) == 2
        assert "cases.csv" in capsys.readouterr().err
    assert time.monotonic() - began < 5
