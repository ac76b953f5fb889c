"""Every run of `training/runs` builds and trains; settings, pairs, and where a run starts."""

import dataclasses
import json

import pytest
import torch

import ctssl
from ctssl.encoders import ENCODERS
from tests.support.tiny import SMALL
from tests.support.training import ROOT, SMALL_HEADS, TINY
from training import checkpoints, pretrain
from training.data import seen
from training.data.cache import Corpus
from training.pretext import TASKS
from training.pretext.batch import Batch
from training.recipe import find_run, override, own_run, parse_run
from training.release.card import CARDS, card

RUNS = sorted(
    str(p.relative_to(ROOT / "training" / "runs").with_suffix(""))
    for p in (ROOT / "training" / "runs").rglob("[a-z]*.py")
)


def test_settings_can_be_changed_and_unknown_ones_fail():
    run = override(TINY, ["steps=9", "lr=1e-3", "task_args.ratio=0.5", "bf16=True"])
    assert (run.steps, run.lr, run.task_args, run.bf16) == (9, 1e-3, {"ratio": 0.5}, True)
    for wrong in ("stepz=3", "steps", "steps=many", "steps.x=3"):
        with pytest.raises(SystemExit, match="cannot set"):
            override(TINY, [wrong])


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name.endswith("_mim") and "paper" not in name else pytest.mark.slow)
        for name in RUNS
        if not name.startswith("study/")
    ],
)
def test_every_run_builds_and_takes_a_shrunken_step(name, phantoms):
    run = find_run(name)
    small = SMALL[run.encoder] | {
        k: v for k, v in run.encoder_args.items() if k in ("merge_last", "qkv_bias", "patch_norm")
    }
    crop = 64 if run.encoder_args.get("merge_last") else 32
    heads = SMALL_HEADS if run.task == "smit" else {}
    shrunken = dataclasses.replace(
        run,
        encoder_args=small,
        task_args={**run.task_args, **heads},
        crop=crop,
        batch=2,
        steps=1,
        workers=0,
        init="",
    )
    pretrain.pretrain(shrunken, phantoms)
    with torch.device("meta"):  # the full size, without its memory
        full = pretrain.ENCODERS[run.encoder](**run.encoder_args)
    count = sum(p.numel() for p in full.parameters())
    assert count > 1e6 and ("paper" in name or count <= 3.2e6)
    if "paper" in name:  # the real one, on a small crop
        task = pretrain.build(dataclasses.replace(run, checkpointing=False))
        views = tuple(torch.rand(2, 1, 64, 64, 64) for _ in range(getattr(task, "views", 1)))
        assert torch.isfinite(task(Batch(views, torch.arange(2), torch.arange(2)))["loss"])


@pytest.mark.parametrize("name", [name for name in RUNS if name.startswith("study/")])
def test_a_run_of_the_study_differs_from_its_twin_in_what_it_sees_and_starts_from_alone(name):
    run = find_run(name)
    other = find_run(name.removeprefix("study/").replace("wild_self", "self").replace("wild", "self"))
    assert (run.corpus, run.init) != (other.corpus, other.init)
    assert dataclasses.replace(other, name=run.name, corpus=run.corpus, init=run.init) == run


@pytest.mark.slow
def test_wild_then_self_starts_from_the_wild_weights(phantoms, tmp_path):
    first = pretrain.pretrain(TINY, phantoms)
    then = dataclasses.replace(TINY, name="then", task="contrastive", init=str(phantoms))
    assert torch.equal(
        pretrain.build(then).encoder.patch_embed.proj.weight, first.encoder.patch_embed.proj.weight
    )
    known = json.loads((phantoms / "seen.json").read_text())
    (phantoms / "seen.json").write_text(json.dumps(known | {"voxels": ["another scan"], "series": ["1.2.3"]}))
    found = json.loads(seen.seen(then))  # a scan is still known by the hash that the first training gave it
    assert found == {
        "scheme": 2,
        "salt": "tiny",
        "voxels": sorted(["another scan", *known["voxels"]]),
        "series": ["1.2.3"],
    }
    (phantoms / "seen.json").write_text(
        json.dumps({**known, "scheme": 1})
    )  # an earlier one, for which scans are read
    corpus = Corpus(phantoms / "table.npy")  # of which the cache left all out as damaged
    assert json.loads(seen.seen(then, corpus))["voxels"] == sorted(known["voxels"])
    loose = dataclasses.replace(then, init=str(tmp_path / "state.safetensors"))
    assert json.loads(seen.seen(loose))["partial"]  # nobody knows what these have seen
    with pytest.raises(SystemExit, match="have another architecture"):
        pretrain.build(dataclasses.replace(then, encoder_args=SMALL["swin"] | {"width": 24}))


def test_a_task_and_an_encoder_without_a_recipe_take_the_usual_settings():
    """Adding either is one file and one line."""
    run = own_run("scans", "mine", "slab", "mine-slab")
    assert (run.encoder, run.task, run.encoder_args) == ("mine", "slab", {}) and run.steps > 0


def test_a_new_task_and_a_new_encoder_have_a_card(monkeypatch):
    class Mine(ctssl.ViT):
        pass

    class Slab:
        about = "slabs"

    monkeypatch.setitem(ENCODERS, "mine", Mine)
    monkeypatch.setitem(TASKS, "slab", Slab)
    folder = CARDS / "vit-wild-mim"
    config, history = (json.loads((folder / name).read_text()) for name in ("config.json", "training.json"))
    history["run"]["task"] = "slab"
    text = card(config | {"encoder": "mine", "corpus": "MY_SCANS"}, history)
    assert "A 3D Mine encoder" in text and "pretrained with\nslabs, on the scans of MY_SCANS" in text
    assert "(144,)" in text


def test_a_run_that_is_read_again_is_the_same_run():
    """Cache and model table compare `Preprocess` as written: with a list for a tuple, a corpus was prepared twice."""
    run = own_run("scans", "vit", "lesions", "x")
    again = parse_run(json.loads(checkpoints.settings(run)))
    assert (again.views, repr(again.preprocess)) == (run.views, repr(run.preprocess))
