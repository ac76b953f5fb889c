"""Label efficiency: the trainings, what is kept, the table."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from ctssl.cli import main
from ctssl.finetuning import curve
from ctssl.finetuning.prepare import choose_sides
from ctssl.finetuning.run import run

SHORT = ["--steps", "2", "--crop", "16", "--batch", "1", "--head", "linear"]


@pytest.mark.slow
def test_the_command_trains_each_model_with_each_number_of_patients(
    labelled, tiny_folder, tmp_path, capsys, monkeypatch
):
    asked, out = [], tmp_path / "curve"

    def counted(request, dataset, survey):
        asked.append((request.few_shot, request.from_scratch, request.settings.seed, tuple(request.hold_out)))
        return run(request, dataset, survey=survey)

    monkeypatch.setattr(curve, "run", counted)
    command = [
        "curve",
        str(labelled),
        "--out",
        str(out),
        "--models",
        str(tiny_folder),
        "scratch",
        "--shots",
        "1",
        "all",
    ]
    assert main([*command, "--seeds", "1", *SHORT]) == 0
    assert asked == [(count, scratch, 0, ("case2",)) for count in (1, None) for scratch in (False, True)]
    points = json.loads((out / "curve.json").read_text())
    assert [(p["shots"], p["model"]) for p in points] == [
        (n, m) for n in (1, 2) for m in (str(tiny_folder), "scratch")
    ]
    report = json.loads((out / "tiny-1-0" / "report.json").read_text())
    assert len(report["train"]) == 1 and points[0]["dsc"] == pytest.approx(report["mean_dsc"])
    assert (out / "curve.png").read_bytes().startswith(b"\x89PNG") and "too few" in capsys.readouterr().out
    weights = {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")}
    assert main([*command, "--seeds", "1", *SHORT]) == 0  # nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.safetensors")} == weights


def test_the_validation_cases_of_a_table_stay_for_validation(labelled, tiny_folder, tmp_path, monkeypatch):
    """As `finetune` divides the same table."""
    table, found = labelled / "cases.csv", []
    lines = [
        f"images/case{i}.nii.gz,labels/case{i}.nii.gz,{s}" for i, s in enumerate(("train", "val", "test"))
    ]
    table.write_text("\n".join(["image,label,split", *lines]) + "\n")

    def divided(request, dataset, survey):
        found.append(choose_sides(dataset.cases, request))
        return SimpleNamespace(held_out={"case2": {"tumour": 0.5}})

    monkeypatch.setattr(curve, "run", divided)
    (tmp_path / "curve").mkdir()
    measured = curve.measure_curve(
        table, out=tmp_path / "curve", models=[str(tiny_folder), "scratch"], seeds=2
    )
    assert {row["shots"] for row in measured.rows} == {1}  # patients to learn from
    for sides in found:
        names = [[case.name for case in part] for part in (sides.learning, sides.validating, sides.held_out)]
        assert names == [["case0"], ["case1"], ["case2"]]
    assert len(found) == 4


def test_the_table_compares_by_patient_with_the_last_model():
    rng = np.random.default_rng(0)
    rows = []
    for seed in (0, 1):
        for case in range(12):
            base = rng.uniform(0.3, 0.5)
            for model, gain in (("a", 0.1), ("b", 0.0)):
                where = {"model": model, "shots": 5, "seed": seed, "case": f"c{case}", "patient": f"p{case}"}
                rows.append({**where, "dsc": base + gain})
    a, b = curve.Curve(rows, ["a", "b"], [5]).points()
    assert a["gain"] == pytest.approx(0.1) and a["gain_low"] == pytest.approx(0.1) and a["p"] < 0.01
    assert "gain" not in b and a["dsc"] - b["dsc"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    "ask, words",
    [
        (["--models", "vit-wild-mim"], "two or more"),
        (["--models", "vit-scratch", "scratch"], "leave one out"),
        (["--models", "a/enc", "b/enc"], "the same last name"),
        (["--shots", "9"], "numbers from 1 to 2"),
        (["--shots", "few"], "numbers of patients"),
        (["--seeds", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_training(labelled, tmp_path, capsys, ask, words):
    assert main(["curve", str(labelled), "--out", str(tmp_path / "curve"), *ask]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "curve").exists()


def test_a_case_without_a_score_of_the_last_model_is_not_paired(tmp_path):
    where = {"shots": 1, "seed": 0}
    rows = [{**where, "model": "a", "case": c, "patient": c, "dsc": 0.5} for c in "xyz"]
    rows += [{**where, "model": "b", "case": c, "patient": c, "dsc": 0.4} for c in "yz"]
    found = curve.Curve(rows, ["a", "b"], [1])
    assert found.points()[0]["gain"] == pytest.approx(0.1)
    curve.write_curve(found, tmp_path)
    told = json.loads((tmp_path / "curve.json").read_text(), parse_constant=pytest.fail)  # JSON has no NaN
    assert told[0]["p"] is None


def test_files_that_are_not_of_a_curve_are_left_alone(labelled, tmp_path):
    table = labelled / "cases.csv"
    table.write_text("image,label\nimages/case0.nii.gz,labels/case0.nii.gz\n")
    with pytest.raises(FileExistsError, match=r"a cases\.csv that is not of `ctssl curve`"):
        curve.measure_curve(table, out=labelled, models=["vit-tiny-random", "scratch"])
    assert table.read_text().startswith("image,label")
