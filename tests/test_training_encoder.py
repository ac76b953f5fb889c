"""From a finished run to a model folder, and from one's own scans to an encoder and a segmenter."""

import dataclasses
import json

import pytest
import torch

import ctssl
from ctssl.files.weights import read_metadata
from ctssl.hub.provenance import facts
from tests.support import fork
from tests.support.tiny import SMALL
from tests.support.training import SMALL_HEADS, TINY
from training import pretrain
from training.release import encoder as export


def test_what_goes_on_from_a_published_model_has_its_corpus_in_front():
    then = dataclasses.replace(TINY, corpus="lung", init="swin-wild-smit")
    assert [export.trained_on(run) for run in (TINY, then)] == ["wild", "wild-self"]


@pytest.mark.slow
def test_a_finished_run_becomes_a_model_folder_that_loads(phantoms, tmp_path):
    pretrain.pretrain(TINY, phantoms, stop_after=2)
    with pytest.raises(SystemExit, match="step 2 of 6"):
        export.export(TINY, phantoms, tmp_path / "cards")
    task = pretrain.pretrain(TINY, phantoms)
    folder = export.export(TINY, phantoms, tmp_path / "cards")
    model = ctssl.load(folder)
    for key, value in task.encoder.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, atol=1e-3, rtol=1e-3)
    config = json.loads((folder / "config.json").read_text())
    assert config["untrained"] == ["norms.0.weight", "norms.0.bias"]
    history = json.loads((folder / "training.json").read_text())
    voxels = json.loads((folder / "seen.json").read_text())["voxels"]
    told = facts(
        recipe=history["run"],
        manifest=voxels,
        pretext="mim",
        samples=history["samples"],
        licence=config["licence"],
    )
    assert read_metadata(folder / "model.safetensors") == told and told["licence"]
    assert len(history["curve"]) == 6 and history["run"]["steps"] == 6 and history["unseen"]["loss"] > 0
    card = (folder / "README.md").read_text()
    assert "has not been measured" in card and f"{history['curve'][-1]['loss']:.3f}" in card
    assert export.entry(folder).strip().startswith('_pretrained("swin", "wild", "mim", "')


@pytest.mark.slow
def test_the_whole_state_of_a_run_is_where_another_one_starts(phantoms, tmp_path):
    smit = dataclasses.replace(TINY, task="smit", task_args=SMALL_HEADS, steps=2)
    before = pretrain.pretrain(smit, phantoms).state_dict()
    export.whole_state(str(phantoms), None, tmp_path / "whole.safetensors")
    then = dataclasses.replace(smit, seed=1, lr=1e-4, init=str(tmp_path / "whole.safetensors"))
    after = pretrain.build(then).state_dict()
    assert any("teacher" in key for key in before) and before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with pytest.raises(ValueError, match="is not the state of `mim`"):
        pretrain.build(dataclasses.replace(then, task="mim", task_args={}))
    with pytest.raises(SystemExit, match="exists"):
        export.whole_state(str(phantoms), None, tmp_path / "whole.safetensors")


@pytest.mark.slow
def test_ones_own_scans_become_an_encoder_and_a_segmenter(labelled, tmp_path):
    """The README's recipe, from the command line; held-out scans that the pretraining has seen are named."""
    sizes = [
        "crop=32",
        "batch=2",
        "steps=2",
        "workers=0",
        f"encoder_args={SMALL['swin']}",
        f"task_args={SMALL_HEADS}",
    ]
    parent = pretrain.ENCODERS["swin"](**SMALL["swin"]).save_pretrained(tmp_path / "parent")
    pretraining = [
        "training.pretrain",
        "--data",
        labelled,
        "--model",
        "swin",
        "--task",
        "smit",
        "--init",
        parent,
        "--out",
        tmp_path / "my-encoder",
        "--set",
        *sizes,
    ]
    finetuning = [
        "ctssl.cli",
        "finetune",
        labelled,
        "--model",
        tmp_path / "my-encoder",
        "--out",
        tmp_path / "my-model",
        "--steps",
        "2",
        "--crop",
        "16",
        "--batch",
        "1",
    ]
    for command in (pretraining, finetuning):
        done = fork.run(*command)
        assert done.returncode == 0, done.stderr[-2000:]
    assert "was pretrained on this very scan" in done.stderr
    seen = json.loads((tmp_path / "my-encoder" / "seen.json").read_text())
    assert len(seen["voxels"]) == 3  # the scans, and not the masks that lie beside them
    report = json.loads((tmp_path / "my-model" / "report.json").read_text())
    assert report["model"] == "my-encoder" and len(report["held_out"]) == 1


@pytest.mark.slow
def test_what_cannot_be_trained_is_said_before_any_scan_is_read(labelled, tmp_path):
    ask = [
        "training.pretrain",
        "--data",
        labelled,
        "--model",
        "swin",
        "--out",
        tmp_path / "x",
    ]
    for more in (
        ["--task", "mae"],
        ["--task", "mim", "--init", "swin-wild-mum"],
        ["--task", "mim", "--set", "task_args.foo=1"],
    ):
        done = fork.run(*ask, *more)
        assert done.returncode == 1 and "Traceback" not in done.stderr and "Error: " in done.stderr
        assert not (tmp_path / "cache").exists()
