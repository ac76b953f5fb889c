"""The pretraining loop: stopped, killed, compiled, with a schedule and a decay."""

import copy
import dataclasses
import sys
import time

import numpy as np
import pytest
import torch

import ctssl
from ctssl.compiling import compile_blocks
from ctssl.phantom import phantom
from ctssl.zoo import Preprocess
from tests.support import fork
from tests.support.tiny import SMALL
from tests.support.training import SMALL_HEADS, TINY
from training import checkpoints, log, pretrain
from training.data import cache
from training.data.manifest import Scan


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mim", "contrastive", "smit"])
def test_a_run_stopped_in_the_middle_ends_as_one_that_was_not(task, phantoms):
    run = dataclasses.replace(TINY, task=task, task_args=SMALL_HEADS if task == "smit" else {})
    whole = pretrain.pretrain(run, phantoms)
    halves = phantoms.with_name("halves")
    pretrain.pretrain(run, halves, stop_after=3)
    assert checkpoints.read(halves / checkpoints.NEWEST)["step"] == 3
    resumed = pretrain.pretrain(run, halves)
    for (key, one), two in zip(whole.state_dict().items(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, two), key
    assert log.read(phantoms / "log.jsonl") == log.read(halves / "log.jsonl")


@pytest.mark.slow
def test_a_run_killed_at_any_moment_ends_as_one_that_was_not(tmp_path):
    """SIGKILL at a moment that nobody chose; checkpoints after every step."""
    phantom(5.0)[0].save(tmp_path / "phantom.nii.gz")
    sizes = [
        "crop=32",
        "batch=2",
        "steps=16",
        "save_minutes=0.0",
        "workers=0",
        f"encoder_args={SMALL['swin']}",
        f"task_args={SMALL_HEADS}",
    ]
    command = [
        "training.pretrain",
        "--data",
        tmp_path / "phantom.csv",
        "--model",
        "swin",
        "--task",
        "smit",
        "--set",
        *sizes,
    ]
    (tmp_path / "phantom.csv").write_text("image\nphantom.nii.gz\n")
    killed = tmp_path / "killed" / "run"
    process = fork.start(*command, "--out", killed, into=tmp_path)
    while process.exitcode is None and (
        not (killed / "log.jsonl").exists() or len(log.read(killed / "log.jsonl")) < 8
    ):
        time.sleep(0.01)
    process.kill()
    process.join()
    assert (killed / checkpoints.NEWEST).exists() and not (killed / "config.json").exists()
    for out in (killed, tmp_path / "whole" / "run"):
        done = fork.run(*command, "--out", out)
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (checkpoints.read(tmp_path / n / "run" / checkpoints.NEWEST) for n in ("killed", "whole"))
    assert one["step"] == two["step"] == 16
    for key, value in one["task"].items():
        assert torch.equal(value, two["task"][key]), key
    assert ctssl.load(killed).channels == (12, 24)


@pytest.mark.slow
def test_compiled_blocks_train_like_plain_ones(encoder):
    """Traced as for a compiler, without one."""
    torch.manual_seed(0)
    x, twin = torch.rand(2, 1, 8, 8, 32), copy.deepcopy(encoder)  # shifted windows along one axis are enough
    compile_blocks(twin, backend="aot_eager")
    for one in (encoder, twin):
        one.train()(x)[-1].square().mean().backward()
    assert twin.state_dict().keys() == encoder.state_dict().keys()
    for (key, one), two in zip(encoder.named_parameters(), twin.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, atol=1e-5, rtol=1e-3, msg=key)


def test_a_process_that_stood_still_was_not_training(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(pretrain.time, "monotonic", lambda: now[0])
    clock = pretrain.Clock(100.0)
    for spent in (2.0, 2.0, 5000.0, 2.0):  # suspended for more than an hour
        now[0] += spent
        clock.tick()
    assert clock.seconds == 100.0 + 2 + 2 + pretrain.Clock.LONG + 2


def test_the_learning_rate_warms_up_and_falls_along_a_cosine():
    run = dataclasses.replace(TINY, steps=100, lr=1.0, warmup=0.1)
    opt, scheduler = pretrain.optimizer(torch.nn.Linear(2, 2), run)
    rates = []
    for step in range(100):
        scheduler.step_update(step)
        rates.append(opt.param_groups[0]["lr"])
    assert rates[:10] == pytest.approx([0.1 + 0.09 * i for i in range(10)])
    assert rates[10:] == pytest.approx([0.5 * (1 + np.cos(np.pi * i / 90)) for i in range(90)])


def test_norms_biases_and_tables_do_not_decay(encoder):
    opt, _ = pretrain.optimizer(encoder, TINY)
    decayed = {id(p) for group in opt.param_groups if group["weight_decay"] for p in group["params"]}
    for name, p in encoder.named_parameters():
        assert (id(p) in decayed) == (p.ndim > 1 and "bias_table" not in name and "positions" not in name), (
            name
        )


def test_what_the_disk_refused_once_is_tried_again(tmp_path, monkeypatch):
    scan = phantom(6.0)[0].save(tmp_path / "scan.nii.gz")
    scans = [Scan(scan, "p")]
    whole = cache.write_whole

    def full(path, content):
        if path.suffix == ".npy" and not path.name.startswith("table"):
            raise OSError(28, "no space left")
        whole(path, content)

    monkeypatch.setattr(cache, "write_whole", full)
    with pytest.raises(SystemExit, match="1 scans are unusable"):
        cache.prepare_corpus(scans, Preprocess(), tmp_path / "cache")
    monkeypatch.setattr(cache, "write_whole", whole)
    assert len(cache.prepare_corpus(scans, Preprocess(), tmp_path / "cache")) == 1


def test_a_folder_that_is_not_of_a_run_is_left_alone(phantoms, tmp_path):
    phantoms.mkdir(parents=True)
    (phantoms / "log.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match="holds a log.jsonl that is not of a run"):
        pretrain.pretrain(TINY, phantoms)
    assert (phantoms / "log.jsonl").read_text() == "mine"


def test_contrast_needs_a_second_patient(tmp_path):
    scan = phantom(8.0)[0].save(tmp_path / "one.nii.gz")
    (tmp_path / "scans.csv").write_text(f"image,patient\n{scan},p\n")
    run = dataclasses.replace(TINY, task="contrastive", corpus=str(tmp_path / "scans.csv"))
    with pytest.raises(ValueError, match="compares patients, and these scans are of 1"):
        pretrain.pretrain(run, tmp_path / "run")


def test_each_process_takes_its_own_gpu_before_they_join(monkeypatch, tmp_path):
    """NCCL takes the current device for objects; with the first one for all it fails."""
    calls = []
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.set_device", lambda device: calls.append(str(device)))
    monkeypatch.setattr("torch.distributed.init_process_group", lambda *kind, **_: calls.extend(kind))
    monkeypatch.setattr(pretrain, "build", lambda *_: calls.append("trains") or sys.exit())
    monkeypatch.setattr(sys, "argv", ["pretrain", "vit_wild_mim", "--out", str(tmp_path / "out")])
    for name, value in {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        pretrain.main()
    assert calls == ["cuda:1", "nccl", "trains"]
