"""`ctssl.evaluate`: tables from folders of masks, paired tests, and what is wrong with a folder."""

import json
import math

import numpy as np
import pytest

import ctssl
from ctssl import evaluation
from ctssl.cli.main import main
from ctssl.evaluation import statistics


@pytest.fixture
def folders(tmp_path):
    """Eight cases: plates of 10 voxels; this prediction is off by one, the other by two; case 7 finds nothing."""
    for kind, off in (("truth", 0), ("this", 1), ("other", 2)):
        (tmp_path / kind).mkdir()
        for i in range(8):
            mask = np.zeros((24, 16, 8), np.uint8)
            if not (kind == "this" and i == 7):
                mask[4 + off : 14 + off, 2 : 4 + i] = 1
            ctssl.Volume(mask, np.diag([2.0, 1.0, 3.0, 1.0])).save(tmp_path / kind / f"c{i}.nii.gz")
    rows = "".join(f"c{i},p{i // 2},{'SOFT' if i < 4 else 'STANDARD'}\n" for i in range(8))
    (tmp_path / "cases.csv").write_text("id,patient,kernel\n" + rows)
    return tmp_path


def test_rows_strata_and_pairs(folders, tmp_path):
    found = ctssl.evaluate(
        folders / "this",
        folders / "truth",
        table=folders / "cases.csv",
        by=("kernel",),
        against=folders / "other",
    )
    assert len(found.cases) == 8
    first, last = found.cases[0], found.cases[7]
    assert (first["dsc"], first["other_dsc"]) == (pytest.approx(0.9), pytest.approx(0.8))
    assert first["volume_ml"] == pytest.approx(10 * 2 * 8 * 6 / 1000) and first[
        "volume_error_ml"
    ] == pytest.approx(0)
    assert first["hd95_mm"] == pytest.approx(2.0) and first["lesions_found"] == 1
    assert last["dsc"] == 0.0 and math.isnan(last["hd95_mm"])
    strata = {row["stratum"]: row for row in found.strata}
    assert {name: row["cases"] for name, row in strata.items()} == {
        "all": 8,
        "kernel SOFT": 4,
        "kernel STANDARD": 4,
    }
    assert strata["all"]["dsc"] == pytest.approx(7 * 0.9 / 8) and strata["all"]["without_hd95"] == 1
    assert strata["kernel SOFT"]["dsc_low"] == pytest.approx(0.9) == strata["kernel SOFT"]["dsc_high"]
    assert (
        strata["all"]["lesion_sensitivity"] == pytest.approx(7 / 8)
        and strata["all"]["false_positives_per_scan"] == 0
    )
    paired = {row["metric"]: row for row in found.paired}
    assert (
        paired["dsc"]["difference"] == pytest.approx((7 * 0.1 - 0.8) / 8) and paired["dsc"]["patients"] == 4
    )
    assert paired["hd95_mm"]["patients"] == 4 and paired["hd95_mm"]["rank_biserial"] == -1.0
    assert math.isnan(paired["dsc"]["p"])  # eight cases, but four patients
    alone = {
        row["metric"]: row
        for row in ctssl.evaluate(folders / "this", folders / "truth", against=folders / "other").paired
    }
    assert alone["dsc"]["patients"] == 8 and alone["hd95_mm"]["patients"] == 7 and 0 < alone["dsc"]["p"] < 1
    out = found.save(tmp_path / "report")
    assert {p.name for p in out.iterdir()} == {"cases.csv", "report.json", "report.md", "paired.png"}
    assert json.loads((out / "report.json").read_text())["cases"][7]["hd95_mm"] is None
    assert "| kernel SOFT | 4 |" in (out / "report.md").read_text()
    ctssl.evaluate(folders / "this", folders / "truth").save(out, overwrite=True)
    assert not (out / "paired.png").exists()  # of the report before
    (out / "config.json").touch()
    with pytest.raises(FileExistsError, match="holds a model with a report of its own"):
        found.save(out, overwrite=True)


def test_false_positives_are_counted_over_all_scans(tmp_path):
    """As FROC does, also over those in which neither truth nor mask has the label."""
    for kind in ("truth", "mask"):
        (tmp_path / kind).mkdir()
        for case in range(8):
            mask = np.zeros((12, 12, 12), np.uint8)
            mask[1:3, 1:3, 1:3] = 1
            if case < 3 or (kind == "mask" and case < 5):
                mask[8:10, 8:10, 8:10] = 2
            ctssl.Volume(mask, np.eye(4)).save(tmp_path / kind / f"c{case}.nii.gz")
    strata = {row["stratum"]: row for row in ctssl.evaluate(tmp_path / "mask", tmp_path / "truth").strata}
    assert strata["label 2"]["cases"] == 5 and strata["label 2"]["false_positives_per_scan"] == 2 / 8


def test_what_only_one_of_the_two_invents_counts(folders):
    """The other masks hold a second label that nobody has: in the comparison they lose by it, these keep their own score."""
    for path in (folders / "this").iterdir():
        mask = ctssl.read(path)
        worse = np.where(np.arange(24)[:, None, None] == 20, 2, mask.array).astype(np.uint8)
        ctssl.Volume(worse, mask.affine).save(folders / "other" / path.name, overwrite=True)
    found = ctssl.evaluate(folders / "this", folders / "truth", against=folders / "other")
    assert found.strata == ctssl.evaluate(folders / "this", folders / "truth").strata
    back = ctssl.evaluate(folders / "other", folders / "truth", against=folders / "this")
    dsc = [{row["metric"]: row for row in one.paired}["dsc"] for one in (found, back)]
    assert [row["difference"] for row in dsc] == [pytest.approx(0.5), pytest.approx(-0.5)]
    assert {row["metric"]: row["undefined"] for row in found.paired} == {"dsc": 0, "nsd": 0, "hd95_mm": 9}
    with pytest.raises(FileExistsError, match=r"holds a cases.csv"):
        found.save(folders)


def test_no_p_value_below_six_cases(folders):
    for i in range(5, 8):
        for kind in ("truth", "this", "other"):
            (folders / kind / f"c{i}.nii.gz").unlink()
    found = ctssl.evaluate(folders / "this", folders / "truth", against=folders / "other")
    assert len(found.cases) == 5 and found.missing == [] and all(math.isnan(row["p"]) for row in found.paired)


def test_labels_of_one_patient_are_no_patients(tmp_path):
    """Three cases with two labels are three, not six."""
    for kind, off in (("truth", 0), ("this", 1), ("other", 2)):
        (tmp_path / kind).mkdir()
        for i in range(3):
            mask = np.zeros((24, 16, 8), np.uint8)
            mask[4 + off : 14 + off, :6], mask[4 + off : 14 + off, 8:14] = 1, 2
            ctssl.Volume(mask, np.eye(4)).save(tmp_path / kind / f"c{i}.nii.gz")
    found = ctssl.evaluate(tmp_path / "this", tmp_path / "truth", against=tmp_path / "other")
    assert len(found.cases) == 6 and found.strata[0]["cases"] == 3
    assert all(row["patients"] == 3 and math.isnan(row["p"]) for row in found.paired)


def test_what_was_not_predicted_is_said(folders, capsys):
    for i in (2, 5):
        (folders / "this" / f"c{i}.nii.gz").unlink()
    found = ctssl.evaluate(folders / "this", folders / "truth")
    assert len(found.cases) == 6 and found.missing == ["c2", "c5"]
    assert main(["evaluate", str(folders / "this"), str(folders / "truth")]) == 0
    assert "2 true masks have no prediction and are not counted: c2, c5" in capsys.readouterr().out


def test_maps_of_probabilities_are_no_masks(folders):
    soft = ctssl.Volume(np.full((24, 16, 8), 0.3, np.float32), np.diag([2.0, 1.0, 3.0, 1.0]))
    soft.save(folders / "this" / "c0.nii.gz", overwrite=True)
    with pytest.raises(ValueError, match=r"c0.nii.gz holds fractions"):
        ctssl.evaluate(folders / "this", folders / "truth")


def test_the_table_of_a_training_serves_for_strata(folders):
    """Its column `image` names the cases."""
    rows = "".join(f"images/c{i}_0000.nii.gz,{'SOFT' if i < 4 else 'STANDARD'}\n" for i in range(8))
    (folders / "train.csv").write_text("image,kernel\n" + rows)
    found = ctssl.evaluate(folders / "this", folders / "truth", table=folders / "train.csv", by=("kernel",))
    assert [row["stratum"] for row in found.strata] == ["all", "kernel SOFT", "kernel STANDARD"]


def test_a_tilted_gantry_changes_neither_volume_nor_distance():
    """A ball on a grid that is sheared by 20 degrees, against one that is 6 mm further on."""
    shear = np.diag([1.0, 1.0, 2.0, 1.0])
    shear[1, 2] = 2.0 * np.tan(np.radians(20))
    index = np.stack(np.meshgrid(*map(np.arange, (60, 80, 30)), indexing="ij"), -1)
    place = index @ shear[:3, :3].T
    balls = [
        ctssl.Volume((np.linalg.norm(place - [30 + off, 50, 30], axis=-1) < 14).astype(np.uint8), shear)
        for off in (0, 6)
    ]
    (row,) = evaluation.score_masks(balls[1], balls[0], name="x", tolerance_mm=2.0)
    assert row["volume_ml"] == pytest.approx(4 / 3 * np.pi * 14**3 / 1000, rel=0.03)
    assert row["hd95_mm"] == pytest.approx(5.5, abs=1.0)
    overlap = 1 - 6 / 28 * (1.5 - 0.5 * (6 / 28) ** 2)
    assert row["dsc"] == pytest.approx(overlap, abs=0.02)
    (without,) = evaluation.score_masks(
        balls[1], balls[0], name="x", tolerance_mm=None
    )  # and so without distances
    assert math.isnan(without["hd95_mm"]) and math.isnan(without["nsd"]) and without["dsc"] == row["dsc"]


def test_holm_by_hand():
    assert evaluation.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    corrected = evaluation.holm([0.5, math.nan, 0.9])
    assert corrected[0] == corrected[2] == 1.0 or corrected == pytest.approx(
        [1.0, math.nan, 1.0], nan_ok=True
    )


def test_a_patient_with_many_scans_counts_once():
    """In mean, median and interval: four copies of each tell no more than one of each, and four of one no more of it."""

    def scans(patient: int, dsc: float, count: int) -> list[dict]:
        one = {"patient": str(patient), "dsc": dsc, "nsd": dsc, "hd95_mm": 1.0, "volume_ml": 1.0}
        one |= {"lesions": 1, "lesions_found": 1, "false_positives": 0}
        return [{**one, "case": f"{patient}-{number}"} for number in range(count)]

    values = np.linspace(0.2, 0.9, 10)
    once, all_copied, one_copied = (
        statistics.summary(
            [row for i, dsc in enumerate(values) for row in scans(i, dsc, count(i))], "all", ""
        )
        for count in (lambda i: 1, lambda i: 4, lambda i: 4 if i == 0 else 1)
    )
    for key in ("dsc", "dsc_median", "dsc_low", "dsc_high"):
        assert once[key] == pytest.approx(all_copied[key]) == pytest.approx(one_copied[key])
    assert once["dsc"] == pytest.approx(values.mean()) and one_copied["cases"] == 13


def test_what_does_not_fit_is_said(folders, capsys):
    (folders / "this" / "extra.nii.gz").write_bytes((folders / "this" / "c0.nii.gz").read_bytes())
    assert main(["evaluate", str(folders / "this"), str(folders / "truth")]) == 2
    assert "extra" in capsys.readouterr().err
    (folders / "this" / "extra.nii.gz").unlink()
    with pytest.raises(ValueError, match="needs a table"):
        ctssl.evaluate(folders / "this", folders / "truth", by=("kernel",))
    with pytest.raises(ValueError, match=r"needed: id, case or image, and \['age'\]"):
        ctssl.evaluate(folders / "this", folders / "truth", by=("age",), table=folders / "cases.csv")
    ctssl.Volume(np.zeros((9, 9, 9), np.uint8), np.eye(4)).save(
        folders / "this" / "c0.nii.gz", overwrite=True
    )
    with pytest.raises(ValueError, match="c0: prediction and truth are on different grids"):
        ctssl.evaluate(folders / "this", folders / "truth")


def test_the_command_prints_tables_and_json(folders, capsys, tmp_path):
    both = [str(folders / "this"), str(folders / "truth")]
    assert main(["evaluate", *both, "--against", str(folders / "other"), "--out", str(tmp_path / "r")]) == 0
    assert "| all | 8 |" in capsys.readouterr().out
    assert main(["evaluate", *both, "--out", str(tmp_path / "r")]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main(["evaluate", *both, "--out", str(tmp_path / "r"), "--overwrite"]) == 0
    capsys.readouterr()
    assert main(["evaluate", *both, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["cases"]) == 8


def test_each_label_has_a_stratum_of_its_name_and_the_report_says_what_made_it(tmp_path, capsys):
    for folder, shift in (("mine", 1), ("true", 0)):
        array = np.zeros((12, 12, 12), np.uint8)
        array[2:6, 2:6, 2:6], array[7 + shift : 10 + shift, 7:10, 7:10] = 1, 2
        (tmp_path / folder).mkdir()
        for name in "ab":
            ctssl.Volume(array, np.eye(4)).save(tmp_path / folder / f"{name}.nii.gz")
    ask = ["evaluate", str(tmp_path / "mine"), str(tmp_path / "true"), "--names", "1=liver", "2=tumour"]
    assert main([*ask, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    strata = {row["stratum"]: row["dsc"] for row in told["strata"]}
    assert strata == {"all": pytest.approx(5 / 6), "liver": 1.0, "tumour": pytest.approx(2 / 3)}
    assert told["versions"]["ctssl"] and told["versions"]["python"].startswith("3.")
    assert main([*ask[:-1], "tumour"]) == 2 and "LABEL=NAME" in capsys.readouterr().err
    found = ctssl.evaluate(tmp_path / "mine", tmp_path / "true")
    assert [row["stratum"] for row in found.strata] == ["all", "label 1", "label 2"]


def test_a_case_without_any_structure_counts_for_the_only_label_alone(tmp_path):
    def write(folder, name, *labels):
        array = np.zeros((12, 12, 12), np.uint8)
        for label in labels:
            array[4 * label - 4 : 4 * label - (folder == "mine"), 2:6, 2:6] = label
        (tmp_path / folder).mkdir(exist_ok=True)
        ctssl.Volume(array, np.eye(4)).save(tmp_path / folder / f"{name}.nii.gz", overwrite=True)

    for folder in ("mine", "true"):
        write(folder, "a", 2)
        write(folder, "healthy")
    found = ctssl.evaluate(tmp_path / "mine", tmp_path / "true")
    assert [(row["case"], row["label"]) for row in found.cases] == [("a", 2), ("healthy", 2)]
    assert found.cases[1]["dsc"] == 1 and found.empty == []
    for folder in ("mine", "true"):
        write(folder, "b", 1, 2)
    found = ctssl.evaluate(tmp_path / "mine", tmp_path / "true")
    assert {row["case"] for row in found.cases} == {"a", "b"} and found.empty == ["healthy"]
    assert "holds a label (1): healthy" in found.markdown()
    for wrong in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="at least 0 mm"):
            ctssl.evaluate(tmp_path / "mine", tmp_path / "true", tolerance_mm=wrong)


def test_255_is_a_label_where_another_mask_has_it_beside_others(tmp_path):
    """Alone it stands for 1, as programs for images write masks."""
    for kind in ("p", "t"):
        (tmp_path / kind).mkdir()

    def save(kind, name, values):
        array = np.zeros((8, 8, 8), np.uint8)
        for k, value in enumerate(values):
            array[2 * k : 2 * k + 2] = value
        ctssl.Volume(array, np.eye(4)).save(tmp_path / kind / f"{name}.nii.gz", overwrite=True)

    for kind, white in (("p", 1), ("t", 255)):
        save(kind, "a", [white])
    assert ctssl.evaluate(tmp_path / "p", tmp_path / "t").cases[0]["dsc"] == 1
    for kind in ("p", "t"):
        save(kind, "a", [255])
        save(kind, "b", [255, 1])
    with pytest.raises(ValueError, match=r"a.nii.gz holds 255 alone.*b.nii.gz holds it beside.*--names 255="):
        ctssl.evaluate(tmp_path / "p", tmp_path / "t")
    found = ctssl.evaluate(tmp_path / "p", tmp_path / "t", names={1: "liver", 255: "tumour"})
    assert [(row["case"], row["label"], row["dsc"]) for row in found.cases] == [
        ("a", 255, 1),
        ("b", 1, 1),
        ("b", 255, 1),
    ]


def test_a_report_never_replaces_the_table_that_is_read(folders, capsys):
    before = (folders / "cases.csv").read_bytes()
    ask = [
        "evaluate",
        str(folders / "this"),
        str(folders / "truth"),
        "--table",
        str(folders / "cases.csv"),
        "--by",
        "kernel",
    ]
    assert main([*ask, "--out", str(folders), "--overwrite"]) == 2
    assert (
        "is a table that is read" in capsys.readouterr().err
        and (folders / "cases.csv").read_bytes() == before
    )


def test_only_a_report_is_replaced_and_a_label_of_the_other_masks_alone_is_said(folders, tmp_path, capsys):
    both = [str(folders / "this"), str(folders / "truth")]
    (tmp_path / "r").mkdir()
    (tmp_path / "r" / "report.md").write_text("my thesis")
    ask = ["evaluate", *both, "--out", str(tmp_path / "r"), "--overwrite"]
    assert main(ask) == 2 and "that is not of a report of ctssl" in capsys.readouterr().err
    assert (tmp_path / "r" / "report.md").read_text() == "my thesis"
    (tmp_path / "r" / "report.md").unlink()
    assert main(ask) == main(ask) == 0
    mask = ctssl.read(folders / "other" / "c0.nii.gz")
    mask.array[0, 0, 0] = 2
    mask.save(folders / "other" / "c0.nii.gz", overwrite=True)
    with pytest.warns(UserWarning, match=r"label 2 occurs in some masks of .*other"):
        ctssl.evaluate(folders / "this", folders / "truth", against=folders / "other")
