"""What a fine-tuned model's folder tells: scores, curves, who was trained on, what is doubtful."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from huggingface_hub import ModelCard

import ctssl
from ctssl.cli.main import main
from ctssl.datasets import splits
from ctssl.datasets.layouts import find_cases
from ctssl.files.weights import read_metadata
from ctssl.hub.client import WEIGHTS
from ctssl.volume.volume import Volume
from tests.support.tiny import QUICK, tiny_swin


@pytest.mark.slow
def test_the_folder_tells_what_came_out(labelled, tiny, tmp_path):
    report = ctssl.finetune(
        labelled, model=tiny, out=tmp_path / "m", hold_out=["case1", "case2"], settings=QUICK, progress=False
    )
    rows = list(csv.DictReader((tmp_path / "m" / "cases.csv").open()))
    assert [row["case"] for row in rows] == ["case1", "case2"]
    assert float(rows[0]["dsc"]) == pytest.approx(report.held_out["case1"]["tumour"], abs=1e-4)
    assert float(rows[0]["volume_ml"]) == pytest.approx(
        (ctssl.read(labelled / "labels" / "case1.nii.gz").array > 0).sum() * 12 / 1000, abs=1e-4
    )
    card = ModelCard((tmp_path / "m" / "README.md").read_text())
    assert card.data.eval_results and card.data.eval_results[0].metric_value == pytest.approx(
        report.mean_dsc, abs=1e-4
    )
    for picture in ("best.png", "median.png", "worst.png"):
        assert f"({picture})" in card.text and (tmp_path / "m" / picture).read_bytes()[:4] == b"\x89PNG"


@pytest.mark.slow
def test_few_cases_have_a_curve_of_the_loss(labelled, tiny, tmp_path):
    report = ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    assert [set(row) for row in report.curve] == [{"step", "loss"}] * 4 and report.validated == []
    assert (tmp_path / "m" / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_licence_of_the_starting_weights_goes_on(labelled, encoder, tmp_path):
    start = encoder.save_pretrained(tmp_path / "start")
    config = json.loads((start / "config.json").read_text()) | {"licence": "CC-BY-NC-3.0", "data": "many CTs"}
    (start / "config.json").write_text(json.dumps(config))
    for name, from_scratch in (("m", False), ("s", True)):
        ctssl.finetune(
            labelled,
            model=start,
            out=tmp_path / name,
            from_scratch=from_scratch,
            settings=replace(QUICK, steps=1),
            progress=False,
        )
        text, origin = (tmp_path / name / "README.md").read_text(), read_metadata(tmp_path / name / WEIGHTS)
        assert ("Not for commercial use" in text) == ("(licence CC-BY-NC-3.0)" in text) == (not from_scratch)
        assert origin.get("licence", "") == ("" if from_scratch else "CC-BY-NC-3.0")
        data = json.loads((tmp_path / name / "config.json").read_text())["data"]
        assert data == "2 labelled scans of its own" + (
            "" if from_scratch else "; the starting weights (start): many CTs"
        )


def test_what_is_doubtful_about_a_case_is_told(labelled, tiny, tmp_path, capsys):
    mask = ctssl.read(labelled / "labels" / "case1.nii.gz")
    Volume(np.zeros_like(mask.array), mask.affine).save(labelled / "labels" / "case1.nii.gz", overwrite=True)
    tiny.save_pretrained(tmp_path / "tiny")
    ask = [
        "finetune",
        str(labelled),
        "--model",
        str(tmp_path / "tiny"),
        "--out",
        str(tmp_path / "m"),
        "--steps",
        "1",
        "--crop",
        "16",
        "--batch",
        "1",
        "--hold-out",
        "case2",
        "--json",
    ]
    assert main(ask) == 0
    said = capsys.readouterr()
    assert "warning: case1: the mask is empty" in said.err
    assert json.loads(said.out)["warnings"][0].startswith("case1: the mask is empty")
    assert "case1: the mask is empty" in (tmp_path / "m" / "README.md").read_text()


@pytest.mark.slow
def test_held_out_cases_that_the_encoder_has_seen_are_told(labelled, tmp_path):
    from ctssl.volume.volume import voxel_hash

    folder = tiny_swin().save_pretrained(tmp_path / "seen")
    hashes = [voxel_hash(ctssl.read(labelled / "images" / f"case{i}.nii.gz"), "salt") for i in (0, 2)]
    (folder / "seen.json").write_text(json.dumps({"salt": "salt", "voxels": hashes, "series": []}))
    report = ctssl.finetune(
        labelled, model=folder, out=tmp_path / "m", settings=QUICK, hold_out=["case2"], progress=False
    )
    assert [note.split(":")[0] for note in report.warnings] == [
        "case2"
    ] and "pretrained on this very scan" in report.warnings[0]


@pytest.mark.slow
def test_who_is_trained_on_who_chooses_and_who_is_judged(labelled, tiny, tmp_path, capsys):
    """By the table's words; the segmenter knows afterwards whom it was trained on."""

    def table(*words):
        rows = [f"images/case{i}.nii.gz,labels/case{i}.nii.gz,{word}" for i, word in enumerate(words)]
        (labelled / "table.csv").write_text("image,label,split\n" + "\n".join(rows) + "\n")
        return labelled / "table.csv"

    report = ctssl.finetune(
        table("train", " Val", "test"), model=tiny, out=tmp_path / "m", settings=QUICK, progress=False
    )
    assert (
        report.train == ["case0", "case1"]
        and report.validated == ["case1"]
        and list(report.held_out) == ["case2"]
    )
    assert {"dsc", "loss", "step"} == set(report.curve[0])
    assert main(["check", str(labelled), "--model", str(tmp_path / "m")]) == 0
    said = capsys.readouterr().out
    assert [f"case{i}: {tmp_path / 'm'} was trained on this very scan" in said for i in range(3)] == [
        True,
        True,
        False,
    ]
    train, held = splits.divide(find_cases(table("train", "train", "val")).cases, None, 0)
    assert [case.name for case in held] == ["case2"] and len(train) == 2  # nobody else is left to judge on
    with pytest.raises(ValueError, match="unknown split 'tarin'; use train, val or test"):
        splits.divide(find_cases(table("train", "tarin", "test")).cases, None, 0)


@pytest.mark.slow
def test_what_cannot_be_judged_is_told_before_the_training(labelled, tiny, tmp_path):
    mask = ctssl.read(labelled / "labels" / "case2.nii.gz")
    voxels = np.argwhere(mask.array)
    mask.array[tuple(voxels[: len(voxels) // 2].T)] = 2
    mask.save(labelled / "labels" / "case2.nii.gz", overwrite=True)
    how = dict(model=tiny, out=tmp_path / "m", settings=QUICK, hold_out=["case2"], progress=False)
    with pytest.raises(ValueError, match="more than the 0.1 GB allowed"):
        ctssl.finetune(labelled, **how, max_memory_gb=0.1)
    assert not (tmp_path / "m").exists()
    assert any(
        "label 2: only held-out and validation cases have it" in note
        for note in ctssl.finetune(labelled, **how).warnings
    )
