"""What a GPU computes is what the CPU does."""

import contextlib
import copy
import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch._dynamo.utils
from safetensors.torch import load_file

import ctssl
from ctssl.cli.main import main
from ctssl.compiling import compile_blocks
from ctssl.encoders import ENCODERS
from ctssl.encoders.pixels import Pixels
from ctssl.heads import HEADS, WHOLE
from ctssl.inference.masks import segment
from ctssl.inference.windows import Windows
from ctssl.phantom import phantom
from ctssl.precision import CUBLAS, half
from tests.support.tiny import QUICK, QUICK_FLAGS, SMALL
from tests.support.training import ROOT, SMALL_HEADS, TINY
from training import pretrain
from training.data.draws import Draws
from training.data.lesions import paste
from training.pretext import TASKS
from training.pretext.batch import Batch

pytestmark = pytest.mark.gpu
DEVICE = os.environ.get("CTSSL_TEST_DEVICE", "cuda")  # `cpu` rehearses
IMAGE = torch.rand(2, 1, 32, 40, 32, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def full_precision():
    """Without TF32, on matrices and convolutions."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def apart(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Return the norm of the difference as a share of the norm of what is wanted."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return float((found - wanted).norm() / wanted.norm().clamp_min(1e-12))


def test_an_encoder_has_the_same_maps_and_gradients_on_a_gpu(encoder):
    there = copy.deepcopy(encoder).to(DEVICE)
    with full_precision():
        maps = [model(IMAGE.to(next(model.parameters()).device)) for model in (encoder, there)]
        for side in maps:
            sum(m.square().mean() for m in side).backward()
    for one, two in zip(*maps, strict=True):
        assert apart(two, one) < 1e-4
    for (name, one), two in zip(encoder.named_parameters(), there.parameters(), strict=True):
        if one.grad is not None and one.grad.norm() > 1e-6:
            assert apart(two.grad, one.grad) < 1e-3, name
    with half(DEVICE, enabled=True), torch.no_grad():
        for one, two in zip(maps[0], there(IMAGE.to(DEVICE)), strict=True):
            assert apart(two.float(), one) < 2e-2


@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_head_has_the_same_logits_on_a_gpu(head):
    torch.manual_seed(0)
    swin = ctssl.Swin(12, depths=(1, 1, 1), heads=(2, 2, 4), window=4, patch=2, merge_last=True)
    encoder = Pixels() if head in WHOLE else swin
    net = ctssl.segmenter(encoder, head=head, window=32).eval()
    image = IMAGE[..., :32, :32]
    with torch.no_grad(), full_precision():
        here, there = net(image), net.to(DEVICE)(image.to(DEVICE))
    assert apart(there, here) < 1e-4


@pytest.mark.parametrize("task", sorted(TASKS))
def test_a_pretext_has_the_same_loss_on_a_gpu(task):
    name = "vit" if task == "mae" else "swin"
    heads = SMALL_HEADS if task in ("smit", "itd_mpd") else {}
    run = dataclasses.replace(TINY, task=task, task_args=heads, encoder=name, encoder_args=SMALL[name])
    here = pretrain.build(run).train()
    views = [torch.rand(4, 1, 32, 32, 32) for _ in range(4 if task == "together" else 2)]
    if hasattr(here, "segmenter"):
        views[1] = (views[1] > 0.5).float()
    batch = Batch(tuple(views), torch.arange(4), torch.arange(4))
    there = copy.deepcopy(here).to(DEVICE)
    with full_precision():
        one, two = here(batch), there(batch.to(torch.device(DEVICE)))
        one["loss"].backward()
        two["loss"].backward()
    assert float(two["loss"]) == pytest.approx(float(one["loss"]), rel=1e-3)
    norms = [
        torch.stack([p.grad.norm().cpu() for p in side.parameters() if p.grad is not None]).norm()
        for side in (here, there)
    ]
    assert float(norms[1]) == pytest.approx(float(norms[0]), rel=2e-2)


def test_lesions_are_pasted_on_a_gpu_as_on_the_cpu():
    """With the same random numbers; single voxels at a border may differ by rounding."""

    class Same(Draws):
        """The CPU's numbers, moved."""

        def some(self, chosen):
            found = super().some(chosen)
            return Same(found.generators, found.count, found.device)

        def _rows(self, draw, shape):
            rows = [draw(shape, generator=one) for one in self.generators]
            return torch.stack(rows).to(DEVICE)

    hu = torch.full((4, 32, 32, 32), -850.0) + 20 * torch.randn(4, 32, 32, 32)
    hu[:, :8] = 40.0
    spacing = torch.tensor([1.0, 1.5, 2.0, 3.0])
    seeds = [torch.Generator().manual_seed(k) for k in range(4)]
    here = paste(hu, spacing, Draws.of_samples([0, 1, 2, 3]))
    there = paste(hu.to(DEVICE), spacing.to(DEVICE), Same(seeds, 4, torch.device(DEVICE)))
    assert here[1].any() and (here[1] == there[1].cpu()).float().mean() > 0.999
    assert apart(there[0], here[0]) < 1e-2


def test_a_segmenter_trains_on_a_gpu_and_gives_the_mask_of_the_cpu(labelled, tiny_folder, tmp_path):
    ask = ["finetune", str(labelled), "--model", str(tiny_folder), "--out", str(tmp_path / "m"), *QUICK_FLAGS]
    assert main([*ask, "--device", DEVICE]) == 0
    net, scan = ctssl.load_segmenter(tmp_path / "m"), labelled / "images" / "case2.nii.gz"
    here = net.segment(scan).array
    there = net.to(DEVICE).segment(scan).array
    assert np.mean(here == there) > 0.999


@pytest.mark.parametrize("resident", [False, True])
@pytest.mark.parametrize("task", ["lesions", "smit", "contrastive"])
def test_a_run_that_was_stopped_on_a_gpu_goes_on(task, resident, tmp_path):
    """With the batches and, but for the order of sums on a GPU, the weights of a run that was not."""
    (tmp_path / "scans").mkdir()
    for number in range(2):
        phantom(8.0, seed=number)[0].save(tmp_path / "scans" / f"{number}.nii.gz")
    run = dataclasses.replace(
        TINY,
        task=task,
        corpus=str(tmp_path / "scans"),
        steps=4,
        resident=resident,
        task_args=SMALL_HEADS if task == "smit" else {},
    )
    whole = pretrain.pretrain(run, tmp_path / "whole")
    pretrain.pretrain(run, tmp_path / "parts", stop_after=2)
    again = pretrain.pretrain(run, tmp_path / "parts")
    assert next(again.parameters()).device.type == DEVICE
    one, two = (
        torch.cat([p.detach().flatten() for p in side.encoder.parameters()]) for side in (whole, again)
    )
    assert apart(two, one) < 1e-3


@pytest.mark.parametrize("name", sorted(SMALL))
def test_compiled_blocks_and_channels_last_have_the_same_maps_on_a_gpu(name):
    torch.manual_seed(0)
    one_block = {"swin": dict(depths=(1,), heads=(2,)), "vit": dict(depth=1, maps=1)}[name]
    plain = ENCODERS[name](**SMALL[name] | one_block).eval().to(DEVICE)
    image = IMAGE[..., :32, :32].to(DEVICE)
    with torch.no_grad(), full_precision():
        wanted = plain(image)[-1]
        last = copy.deepcopy(plain).to(memory_format=torch.channels_last_3d)
        assert apart(last(image)[-1], wanted) < 1e-4
        compiled = copy.deepcopy(plain)
        compile_blocks(compiled)
        assert apart(compiled(image)[-1], wanted) < 1e-4


def test_torchrun_trains_on_one_gpu(tmp_path):
    (tmp_path / "scans").mkdir()
    for seed in (0, 1):  # two patients, to be told apart
        phantom(8.0, seed=seed)[0].save(tmp_path / "scans" / f"p{seed}.nii.gz")
    ask = (
        f"--nproc-per-node 1 -m training.pretrain --data {tmp_path / 'scans'} --model vit --task contrastive"
    )
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *ask.split(), "--out", str(tmp_path / "run")]
        + ["--set", "steps=2", "batch=2", "crop=32", "workers=0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert ctssl.load(tmp_path / "run").config["width"] > 0


@pytest.mark.parametrize("head", sorted(set(HEADS) - {"smit", *WHOLE}))
def test_a_deterministic_training_gives_the_same_weights_twice(head, labelled, tiny_folder, tmp_path):
    """Also after other work on the device, which cuBLAS has to be told of before."""
    os.environ.setdefault(CUBLAS, ":4096:8")
    torch.rand(8, 8, device=DEVICE) @ torch.rand(8, 8, device=DEVICE)
    settings = dataclasses.replace(QUICK, steps=3, crop=32, deterministic=True)
    found = []
    for name in "ab":
        ctssl.finetune(
            labelled,
            model=tiny_folder,
            head=head,
            out=tmp_path / name,
            device=DEVICE,
            settings=settings,
            progress=False,
        )
        found.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(value, found[1][key]) for key, value in found[0].items())


def test_windows_of_a_compiled_network_are_compiled_for_one_size(tiny_segmenter):
    net, scan = ctssl.load_segmenter(tiny_segmenter).to(DEVICE), phantom(6.0)[0]
    plain = segment(net, scan, Windows(bf16=True)).array
    compile_blocks(net.encoder, backend="eager")
    net.encoder.compiled = True
    before = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    again = segment(net, scan, Windows(bf16=True, compiled=True)).array
    assert np.mean(plain == again) > 0.99
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] - before <= 2 * len(net.encoder.blocks)
