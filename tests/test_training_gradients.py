"""Pieces of a batch, recomputed blocks and two processes give the gradient of the whole batch."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import ctssl
from ctssl.phantom import phantom
from tests.support import fork
from tests.support.tiny import SMALL
from tests.support.training import ROOT, SMALL_HEADS, TINY
from training import checkpoints, log, pretrain
from training.data.loader import Places, Samples, loader

GRADIENTS = """
import pathlib, sys, torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from tests.test_training_gradients import gradient_case
from training import pretrain
dist.init_process_group("gloo")
for name in ("mim", "contrastive", "smit", "together"):
    task, pieces = gradient_case(name, world=2, rank=dist.get_rank(), batch=4, pieces=1)
    model = DistributedDataParallel(task, find_unused_parameters=True, broadcast_buffers=False)
    pretrain.backward(model, pieces)
    if hasattr(task, "after_step"):
        task.after_step(0.5)
    if dist.get_rank() == 0:
        torch.save([{k: p.grad for k, p in task.named_parameters() if p.grad is not None}, dict(task.named_buffers())],
                   pathlib.Path(sys.argv[1]) / f"{name}.pt")
del model
dist.barrier()
dist.destroy_process_group()
"""


def gradient_case(name, *, world, rank, batch, pieces, encoder="swin"):
    """A task as it starts, and the batches of its first step as one process of `world` gets them."""
    args = SMALL_HEADS if name == "smit" else {}
    run = dataclasses.replace(
        TINY, task=name, encoder=encoder, encoder_args=SMALL[encoder] | {"drop_path": 0.2}, task_args=args
    )
    task = pretrain.build(run).train()
    if name == "smit":  # as in the middle of a run: tokens of a mean and a deviation that are known
        for kind in task.distillation.kinds:
            task.distillation.get_buffer(f"moments_{kind}").copy_(torch.tensor([[0.1], [0.26]]))
    scans = [np.random.default_rng(i).random((40, 44, 36), dtype=np.float32) for i in range(3)]

    class Three:
        def __len__(self):
            return 3

        def scan(self, number):
            return scans[number]

        def patient(self, number):
            return number

    samples = Samples(Three(), task, dataclasses.replace(TINY, crop=32))  # type: ignore[arg-type]
    places = Places(batch=batch, pieces=pieces, rank=rank, world=world, first=0, last=1)
    return task, [pretrain.at(b, 0.3) for b in loader(samples, places, workers=0)]


def whole_step(name, pieces):
    task, batches = gradient_case(name, world=1, rank=0, batch=8 // pieces, pieces=pieces)
    pretrain.backward(task, batches)
    if hasattr(task, "after_step"):
        task.after_step(0.5)
    return {k: p.grad for k, p in task.named_parameters() if p.grad is not None}, dict(task.named_buffers())


def same(found, expected):
    """Gradients agree within 1e-5 of their norm; so do teacher and centres after the step."""
    for one, two in zip(found, expected, strict=True):
        assert one.keys() == two.keys()
        if two:
            norm = torch.stack([v.double().norm() for v in two.values()]).norm()
            away = torch.stack([(one[k].double() - two[k].double()).norm() for k in two]).norm()
            assert away <= 1e-5 * norm, (away / norm).item()


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ["swin", "vit"])
@pytest.mark.parametrize("name", ["contrastive", "smit"])
def test_recomputed_blocks_give_the_same_gradient(name, encoder):
    """Of both views, each with its own draw of stochastic depth."""
    found = []
    for checkpointing in (False, True):
        task, batches = gradient_case(name, world=1, rank=0, batch=4, pieces=1, encoder=encoder)
        task.encoder.checkpointing = checkpointing
        for block in task.encoder.blocks:
            block.drop_path.rate = 0.5
        pretrain.backward(task, batches)
        found.append(({k: p.grad for k, p in task.named_parameters() if p.grad is not None}, {}))
    same(*found)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mim", "contrastive", "smit", "together"])
def test_two_pieces_give_the_gradient_of_the_whole_batch(name):
    same(whole_step(name, 2), whole_step(name, 1))


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_the_whole_batch(tmp_path):
    script = tmp_path / "two.py"
    script.write_text(GRADIENTS)
    for done in fork.run_pair(script, tmp_path):
        assert done.returncode == 0, done.stderr[-3000:]
    for name in ("mim", "contrastive", "smit", "together"):
        same(torch.load(tmp_path / f"{name}.pt", weights_only=True), whole_step(name, 1))


def torchrun(*arguments):
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        *map(str, arguments),
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=400)
    if (
        "terminate called without an active exception" in done.stderr
    ):  # gloo, now and then, when a process ends; seen once
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=400)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_train_one_model_with_torchrun(tmp_path):
    for seed in (0, 1):  # two patients, to be told apart
        phantom(5.0, seed=seed)[0].save(tmp_path / f"p{seed}.nii.gz")
    (tmp_path / "scans.csv").write_text("image\np0.nii.gz\np1.nii.gz\n")
    sizes = [
        "crop=32",
        "batch=2",
        "steps=3",
        "bf16=True",
        "accumulate=2",
        f"encoder_args={SMALL['swin']}",
        "workers=0",
    ]
    torchrun(
        "-m",
        "training.pretrain",
        "--data",
        tmp_path / "scans.csv",
        "--model",
        "swin",
        "--task",
        "contrastive",
        "--out",
        tmp_path / "runs" / "out",
        "--set",
        *sizes,
    )
    state = checkpoints.read(tmp_path / "runs" / "out" / checkpoints.NEWEST)
    assert state["step"] == 3 and state["world"] == 2
    assert len(log.read(tmp_path / "runs" / "out" / "log.jsonl")) == 3
    assert ctssl.load(tmp_path / "runs" / "out").channels == (12, 24)
