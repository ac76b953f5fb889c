"""The pretraining loop, its tasks and runs, the corpora, the export."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import ctssl
from ctssl.phantom import phantom
from tests.conftest import SMALL
from training import export, pretrain
from training.data import cache, corpora
from training.pretext import TASKS
from training.pretext.masking import block_mask, hide

ROOT = Path(__file__).parent.parent
RUNS = sorted(
    str(p.relative_to(ROOT / "training" / "runs").with_suffix(""))
    for p in (ROOT / "training" / "runs").rglob("[a-z]*.py")
)
TINY = pretrain.Run(
    "tiny", "swin", "mim", "wild", encoder_args=SMALL["swin"], crop=32, batch=2, steps=6, save_minutes=0
)


@pytest.fixture
def phantoms(tmp_path, monkeypatch):
    """Two phantoms in place of a corpus; the folder for a run."""
    paths = [phantom(5.0, seed=i)[0].save(tmp_path / f"phantom{i}.nii.gz") for i in range(2)]
    for module in (pretrain, export):
        monkeypatch.setattr(module, "corpus", lambda name: paths)
    monkeypatch.setattr(
        export, "provenance", lambda name: [dict(id="p", collection="phantom", source="", licence="none", body_part="")]
    )
    return tmp_path / "runs" / "tiny"


# --- tasks: every one, on every encoder ---


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_reaches_every_parameter_it_claims_and_leaves_the_encoders_keys(encoder, name):
    keys = list(encoder.state_dict())
    task = TASKS[name](encoder).train()
    result = task(torch.rand(2, 1, 32, 32, 32))
    assert torch.isfinite(result["loss"]) and result["loss"].ndim == 0
    result["loss"].backward()
    assert list(task.encoder.state_dict()) == keys
    last = {"swin": "norms.1", "vit": "norm"}[type(encoder).__name__.lower()]
    unreached = [n for n, p in task.named_parameters() if p.grad is None]
    assert all(n.startswith("encoder.norms.") and not n.startswith(f"encoder.{last}") for n in unreached)
    assert task.encoder.patch_embed.proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("name", sorted(TASKS))
def test_a_task_learns_one_batch_by_heart(name):
    torch.manual_seed(0)
    task = TASKS[name](ctssl.Swin(**SMALL["swin"])).train()
    x = torch.zeros(2, 1, 32, 32, 32)
    x[:, :, 8:20, 4:30] = 0.7
    opt = torch.optim.AdamW(task.parameters(), 3e-3)
    losses = []
    for _ in range(40):
        loss = task(x)["loss"]
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    assert np.mean(losses[-5:]) < 0.5 * losses[0]


def test_masks_hide_whole_blocks_and_the_asked_share():
    masked = block_mask(3, (16, 16, 16), block=4, ratio=0.75, device=torch.device("cpu"))
    assert masked.dtype == torch.bool and masked.shape == (3, 16, 16, 16)
    assert (masked.flatten(1).float().mean(1) == 0.75).all()
    blocks = masked.view(3, 4, 4, 4, 4, 4, 4).float().mean((2, 4, 6))
    assert ((blocks == 0) | (blocks == 1)).all()
    assert not torch.equal(masked[0], masked[1])
    assert block_mask(1, (5, 3, 4), block=4, ratio=0.5, device=torch.device("cpu")).shape == (1, 5, 3, 4)


def test_the_encoder_never_sees_what_is_hidden():
    tokens, token = torch.rand(1, 4, 4, 4, 6), torch.rand(6)
    masked = block_mask(1, (4, 4, 4), block=2, ratio=0.5, device=torch.device("cpu"))
    hidden = hide(tokens, masked, token)
    assert (hidden[masked] == token).all() and torch.equal(hidden[~masked], tokens[~masked])


def test_mim_puts_each_predicted_voxel_where_it_belongs():
    task = TASKS["mim"](ctssl.Swin(**SMALL["swin"]))
    s = task.stride
    image = torch.arange(8 * 12 * 16.0).view(1, 8, 12, 16)
    patches = image.unfold(1, s, s).unfold(2, s, s).unfold(3, s, s).flatten(-3)  # (1, 2, 3, 4, s^3)
    assert torch.equal(task.to_voxels(patches, (8, 12, 16)), image)


def test_mim_counts_masked_voxels_only(monkeypatch):
    task = TASKS["mim"](ctssl.Swin(**SMALL["swin"])).eval()
    chosen = torch.zeros(1, 16, 16, 16, dtype=torch.bool)
    chosen[:, :8] = True
    monkeypatch.setattr("training.pretext.mim.block_mask", lambda *args, **kwargs: chosen)
    torch.nn.init.zeros_(task.head.weight)
    torch.nn.init.zeros_(task.head.bias)
    x = torch.zeros(1, 1, 32, 32, 32)
    x[:, :, :16] = 0.25
    x[:, :, 16:] = 0.9
    assert task(x)["loss"].item() == pytest.approx(0.25)  # prediction 0, masked half is 0.25


# --- the loop ---


def test_a_run_stopped_in_the_middle_ends_as_one_that_was_not(phantoms):
    whole = pretrain.pretrain(TINY, phantoms)
    halves = phantoms.with_name("halves")
    pretrain.pretrain(TINY, halves, stop_after=3)
    assert torch.load(halves / "checkpoint.pt", weights_only=True)["step"] == 3
    resumed = pretrain.pretrain(TINY, halves)
    for (key, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), key


def test_a_checkpoint_of_other_settings_is_not_continued(phantoms):
    pretrain.pretrain(TINY, phantoms, stop_after=1)
    with pytest.raises(SystemExit, match="other settings"):
        pretrain.pretrain(dataclasses.replace(TINY, lr=1.0), phantoms)


def test_settings_can_be_changed_and_unknown_ones_fail():
    run = pretrain.override(TINY, ["steps=9", "lr=1e-3", "task_args.ratio=0.5", "bf16=True"])
    assert (run.steps, run.lr, run.task_args, run.bf16) == (9, 1e-3, {"ratio": 0.5}, True)
    for wrong in ("stepz=3", "steps", "steps=many", "steps.x=3"):
        with pytest.raises(SystemExit, match="cannot set"):
            pretrain.override(TINY, [wrong])


def test_the_learning_rate_warms_up_and_falls_to_zero():
    run = dataclasses.replace(TINY, steps=100, lr=1.0, warmup=0.1)
    rates = [pretrain.learning_rate(run, step) for step in range(100)]
    assert rates[0] == 0.1 and max(rates) == rates[9] == 1.0 and rates[-1] < 0.01
    assert rates[10:] == sorted(rates[10:], reverse=True)


@pytest.mark.parametrize("name", RUNS)
def test_every_run_builds_and_takes_a_shrunken_step(name, phantoms):
    run = pretrain.find_run(name)
    small = SMALL[run.encoder] | {
        k: v for k, v in run.encoder_args.items() if k in ("merge_last", "qkv_bias", "patch_norm")
    }
    crop = 64 if run.encoder_args.get("merge_last") else 32
    shrunken = dataclasses.replace(run, encoder_args=small, crop=crop, batch=1, steps=1)
    pretrain.pretrain(shrunken, phantoms)
    with torch.device("meta"):  # the full size, without its memory
        full = pretrain.ENCODERS[run.encoder](**run.encoder_args)
    assert sum(p.numel() for p in full.parameters()) > 1e6


def test_two_processes_train_one_model_with_torchrun(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(f"""
import dataclasses, pathlib, sys
sys.path.insert(0, {str(ROOT)!r})
import torch.distributed as dist
from tests.test_pretraining import TINY
from ctssl.phantom import phantom
from training import pretrain
pretrain.corpus = lambda name: [pathlib.Path({str(tmp_path / "phantom.nii.gz")!r})]
dist.init_process_group("gloo")
task = pretrain.pretrain(dataclasses.replace(TINY, bf16=True, steps=2), pathlib.Path({str(tmp_path / "out")!r}))
total = sum(p.double().sum() for p in task.parameters()).detach()
sums = [total.clone() for _ in range(2)]
dist.all_gather(sums, total)
assert sums[0] == sums[1], sums
dist.destroy_process_group()
""")
    phantom(5.0)[0].save(tmp_path / "phantom.nii.gz")
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]
    state = torch.load(tmp_path / "out" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2 and state["world"] == 2


# --- data ---


def test_the_cache_follows_the_scan(tmp_path):
    path = phantom(8.0)[0].save(tmp_path / "p.nii.gz")
    one = cache.prepared([path], TINY.preprocess, tmp_path / "cache")[0]
    assert one.dtype == np.float16 and isinstance(one, np.memmap) and one.min() >= 0 and one.max() <= 1
    phantom(8.0, seed=3)[0].save(path, overwrite=True)
    two = cache.prepared([path], TINY.preprocess, tmp_path / "cache")[0]
    assert not np.array_equal(one, two)


def test_the_split_is_what_its_seed_gives_and_balanced(data):
    assert corpora.make_split() == {side: corpora.split(side) for side in ("train", "test")}
    kernels = {row["id"]: row["kernel"] for row in corpora.cases("sarcoma")}
    assert sorted(kernels[i] for i in corpora.split("test")) == ["SOFT"] * 6 + ["STANDARD"] * 6
    assert len(corpora.split("train")) == 26 and "STS_008" in corpora.split("train")


def test_no_corpus_holds_a_test_case(data):
    test = set(corpora.split("test"))
    for name, count in (("wild", 26), ("self", 26)):
        paths = corpora.corpus(name)
        assert len(paths) == count and all(p.is_file() for p in paths)
        assert not test & {p.name.removesuffix(".nii.gz") for p in paths}
        assert not any("paired" in str(p) or "lung_tumours" in str(p) for p in paths)
    with pytest.raises(ValueError, match="'wild' or 'self'"):
        corpora.corpus("tame")


# --- export ---


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
    assert len(history["curve"]) == 6 and history["run"]["steps"] == 6 and history["unseen"]["loss"] > 0
    card = (folder / "README.md").read_text()
    assert "has not been measured" in card and f"{history['curve'][-1]['loss']:.3f}" in card
    assert "ModelSpec('tiny'" in export.entry(folder)
