"""Fine-tuning on small labelled scans: it learns, holds out, and leaves what is finished alone."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import ctssl
from ctssl import finetuning
from ctssl.datasets.case import Case
from ctssl.finetuning import crops, finish, loop, run
from tests.support.tiny import QUICK


@pytest.mark.slow
def test_a_segmenter_learns_a_ball_and_is_scored_on_the_case_held_out(labelled, tiny, tmp_path):
    settings = ctssl.Settings(steps=80, batch=2, crop=24, lr=4e-3, encoder_lr=4e-3)
    report = ctssl.finetune(
        labelled, model=tiny, out=tmp_path / "m", hold_out=["case1"], settings=settings, progress=False
    )
    assert report.train == ["case0", "case2"] and list(report.held_out) == ["case1"]
    assert report.held_out["case1"]["tumour"] == report.mean_dsc > 0.75
    again = ctssl.load_segmenter(tmp_path / "m").segment(labelled / "images" / "case1.nii.gz")
    truth = ctssl.read(labelled / "labels" / "case1.nii.gz").array
    assert ctssl.metrics.dsc(again.array == 1, truth == 1) == pytest.approx(report.mean_dsc)
    kept = json.loads((tmp_path / "m" / "report.json").read_text())
    assert kept["mean_dsc"] == report.mean_dsc and kept["settings"]["steps"] == 80
    assert not (tmp_path / "m" / ".unfinished").exists()


@pytest.mark.slow
def test_a_label_that_nobody_has_raises_no_score(labelled, tiny, tmp_path):
    """dataset.json names two labels, the masks hold one: of the other there is nothing to judge."""
    (labelled / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 1, "node": 2}}))
    report = ctssl.finetune(
        labelled, model=tiny, out=tmp_path / "m", settings=QUICK, hold_out=["case2"], progress=False
    )
    assert list(report.held_out["case2"]) == ["tumour"]
    assert ctssl.load_segmenter(tmp_path / "m").labels == {1: "tumour", 2: "node"}


def test_a_finished_model_is_not_replaced(labelled, tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="finished model"):
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


@pytest.mark.slow
def test_two_processes_train_one_segmenter(labelled, tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "tiny")
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "ctssl.cli",
        "finetune",
        str(labelled),
        "--model",
        str(tmp_path / "tiny"),
        "--head",
        "linear",
        "--out",
        str(tmp_path / "m"),
        "--steps",
        "2",
        "--crop",
        "16",
        "--batch",
        "1",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    settings = ctssl.Settings(steps=2, crop=16, batch=2)
    ctssl.finetune(
        labelled, model=tiny, head="linear", out=tmp_path / "one", settings=settings, progress=False
    )
    two, one = (ctssl.load_segmenter(tmp_path / name).state_dict() for name in ("m", "one"))
    start = tiny.state_dict()
    moved = {
        k: (v - start[k.removeprefix("encoder.")]).abs().mean()
        for k, v in one.items()
        if k.startswith("encoder.")
    }
    assert max(moved.values()) > 1e-5  # it did learn
    assert all(torch.isfinite(value).all() and value.shape == one[key].shape for key, value in two.items())
    said = done.stdout.splitlines()
    assert sum("is ready" in line for line in said) == 1  # one of the two speaks


def test_a_frozen_encoder_stays_as_it_is_and_minutes_end_the_training(labelled, tiny, tmp_path):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    settings = dataclasses.replace(QUICK, freeze=True, minutes=0.001)
    finetuning_steps = []
    draw = crops.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(crops, "draw", lambda *a, **k: (finetuning_steps.append(a[2]), draw(*a, **k))[1])
        ctssl.finetune(
            labelled, model=tiny, out=tmp_path / "m", settings=settings, spacing_mm=3.0, progress=False
        )
    assert finetuning_steps == list(range(loop.TIMED))
    kept = ctssl.load_segmenter(tmp_path / "m")
    assert kept.spec.preprocess.spacing_mm == 3.0
    for key, value in kept.encoder.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.slow
def test_a_finished_request_is_not_done_again(labelled, tiny, tmp_path, monkeypatch):
    how = dict(model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    first = ctssl.finetune(labelled, **how)
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("trained again"))
    again = ctssl.finetune(labelled, **how, keep=True)
    assert again.held_out == first.held_out and again.curve == first.curve and again.train == first.train
    with pytest.raises(FileExistsError, match="finished model"):
        ctssl.finetune(labelled, **how)
    torch.manual_seed(1)
    other = type(tiny)(**tiny.config)  # of the same shape
    for model in (other, "swin-scratch", "vit-scratch"):
        with pytest.raises(FileExistsError, match="trained with another encoder"):
            ctssl.finetune(labelled, **{**how, "model": model}, keep=True)
    with pytest.raises(FileExistsError, match="trained with another held_out and train"):
        ctssl.finetune(labelled, **how, keep=True, hold_out=[first.train[0]])
    mask = ctssl.read(labelled / "labels" / "case0.nii.gz")
    dataclasses.replace(mask, array=mask.array[::-1]).save(
        labelled / "labels" / "case0.nii.gz", overwrite=True
    )
    with pytest.raises(FileExistsError, match="trained with another data"):  # masks that were drawn anew
        ctssl.finetune(labelled, **how, keep=True)


@pytest.mark.slow
def test_files_of_the_user_stay(labelled, tiny, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "cases.csv").write_text("id\n1\n")
    with pytest.raises(FileExistsError, match="holds a cases.csv that is not of a model"):
        ctssl.finetune(labelled, model=tiny, out=mine, settings=QUICK, progress=False)
    assert (mine / "cases.csv").read_text() == "id\n1\n" and len(list(mine.iterdir())) == 1
    (mine / "cases.csv").rename(mine / "preprocessor_config.json")
    with pytest.raises(FileExistsError, match="holds a preprocessor_config.json that is not of a model"):
        ctssl.finetune(labelled, model=tiny, out=mine, settings=QUICK, progress=False)
    (mine / "preprocessor_config.json").rename(mine / "features.png")
    ctssl.finetune(labelled, model=tiny, out=mine, settings=QUICK, progress=False)
    assert (mine / "features.png").read_text() == "id\n1\n"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    ctssl.finetune(labelled, model=tiny, out=".", settings=QUICK, progress=False)
    assert ctssl.load_segmenter(".").window == 16 and (tmp_path / "here" / "cases.csv").is_file()
    ctssl.finetune(labelled, model=tiny, out=".", settings=QUICK, hold_out=0, overwrite=True, progress=False)
    left = {path.name for path in (tmp_path / "here").iterdir()}
    assert left == {
        "README.md",
        "config.json",
        "curves.png",
        "model.safetensors",
        "preprocessor_config.json",
        "report.json",
        "seen.json",
    }  # no scores of another model


@pytest.mark.slow
@pytest.mark.parametrize("model", sorted(finetuning.BASELINES))
def test_a_baseline_trains_and_loads_again(labelled, model, tmp_path):
    settings = dataclasses.replace(QUICK, steps=1, crop=32)
    report = ctssl.finetune(labelled, model=model, out=tmp_path / "m", settings=settings, progress=False)
    kept = ctssl.load_segmenter(tmp_path / "m")
    assert json.loads((tmp_path / "m" / "report.json").read_text())["model"] == model and kept.parent == ""
    (name,) = report.held_out
    again = kept.segment(labelled / "images" / f"{name}.nii.gz")
    truth = ctssl.read(labelled / "labels" / f"{name}.nii.gz").array
    assert ctssl.metrics.dsc(again.array == 1, truth == 1) == pytest.approx(report.mean_dsc)


@pytest.mark.slow
def test_a_training_whose_judging_fails_is_not_lost(labelled, tiny, tmp_path, monkeypatch):
    how = dict(model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    monkeypatch.setattr(run, "judge_cases", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ctssl.finetune(labelled, **how)
    monkeypatch.undo()
    monkeypatch.setattr(crops, "draw", lambda *_, **__: pytest.fail("trained again"))
    assert ctssl.finetune(labelled, **how).held_out


def test_scoring_counts_towards_the_minutes(monkeypatch):
    """Its time is estimated from the smallest of the held-out cases, and leaves the training half of the minutes."""
    assert [loop.Clock(10.0, 0, reserve).seconds for reserve in (0.0, 200.0, 900.0)] == [600.0, 400.0, 300.0]
    shapes = {"small": (10, 10, 10), "large": (10, 10, 40)}
    cases = [Case(name, Path(name), Path(name)) for name in shapes]
    records = {name: SimpleNamespace(grid=SimpleNamespace(shape=shape)) for name, shape in shapes.items()}
    survey = SimpleNamespace(records=SimpleNamespace(cases=records))
    job = SimpleNamespace(sides=SimpleNamespace(held_out=cases), survey=survey, settings=QUICK)
    judged, now = [], iter((100.0, 102.0))
    monkeypatch.setattr(finish, "judge_case", lambda net, job, case: judged.append(case.name))
    monkeypatch.setattr(finish.time, "monotonic", lambda: next(now))
    assert finish.judging_seconds(None, job) == 0.0 and not judged  # steps were asked for
    job.settings = dataclasses.replace(QUICK, minutes=5.0)
    assert finish.judging_seconds(None, job) == 2.0 * 5 and judged == ["small"]


def test_what_a_stopped_run_left_does_not_hand_over_files_of_the_user(labelled, tiny, tmp_path):
    (tmp_path / "m" / ".unfinished").mkdir(parents=True)
    (tmp_path / "m" / "README.md").write_text("my notes")
    with pytest.raises(FileExistsError, match=r"holds a README\.md that is not of a model"):
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    assert (tmp_path / "m" / "README.md").read_text() == "my notes"


@pytest.mark.slow
@pytest.mark.parametrize("case", ["case0", "case2"])
def test_data_that_change_during_a_run_end_it(labelled, tiny, tmp_path, monkeypatch, case):
    """A training case between survey and training, a held-out one before it is judged."""
    stage, name = (run, "prepare_scans") if case == "case0" else (run, "judge_cases")
    whole = getattr(stage, name)

    def edited(*args):
        mask = ctssl.read(labelled / "labels" / f"{case}.nii.gz")
        mask.array[:, :, ::2] = 0
        mask.save(labelled / "labels" / f"{case}.nii.gz", overwrite=True)
        return whole(*args)

    monkeypatch.setattr(stage, name, edited)
    with pytest.raises(ValueError, match=f"{case}: scan or mask changed since this run began"):
        ctssl.finetune(
            labelled, model=tiny, out=tmp_path / "m", settings=QUICK, hold_out=["case2"], progress=False
        )
