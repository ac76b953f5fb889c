"""Label efficiency: the trainings, what is kept, the table."""

import json

import numpy as np
import pytest

import ctssl
from ctssl.cli import main
from ctssl.finetuning import curve

SHORT = ["--steps", "2", "--crop", "16", "--batch", "1", "--head", "linear"]


@pytest.mark.slow
def test_the_command_trains_each_model_with_each_number_of_patients(
    labelled, tiny_folder, tmp_path, capsys, monkeypatch
):
    asked, out = [], tmp_path / "curve"

    def counted(*args, **kwargs):
        asked.append(
            (kwargs["few_shot"], kwargs["from_scratch"], kwargs["settings"].seed, tuple(kwargs["hold_out"]))
        )
        return ctssl.finetune(*args, **kwargs)

    monkeypatch.setattr(curve, "finetune", counted)
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
        (["--shots", "9"], "numbers from 1 to 2"),
        (["--shots", "few"], "numbers of patients"),
        (["--seeds", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_compared_is_said_before_any_training(labelled, tmp_path, capsys, ask, words):
    assert main(["curve", str(labelled), "--out", str(tmp_path / "curve"), *ask]) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "curve").exists()
