"""The loop: rates, gradients of several devices, the average of the weights, the best of them."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import ctssl
from ctssl.devices import multiplies_bf16, warn_of_slow_bf16
from ctssl.encoders import ENCODERS
from ctssl.finetuning import loop
from ctssl.finetuning.crops import PreparedCase
from ctssl.finetuning.threshold import validate
from tests.support import fork
from tests.support.tiny import QUICK

SCAN = PreparedCase(
    np.random.default_rng(0).random((1, 20, 20, 20)).astype(np.float16),
    np.ones((20, 20, 20), np.uint8),
    np.eye(4),
    "x",
)


def where(folder):
    """Keyword arguments of `fit` for a training of its own."""
    return {"folder": folder / "u", "identity": {}, "from_scratch": False, "progress": False}


def test_the_best_weights_by_validation_are_kept_and_a_training_without_gain_ends(
    tiny, monkeypatch, tmp_path
):
    """With a scripted validation: the weights of the best moment of its second half come back, and `patience` evaluations later
    it ends. Luck at the start, and a single good evaluation at the end of a slump, change nothing."""
    scripted = iter([0.9, 0.1, 0.1, 0.1, 0.1, 0.8, 0.05, 0.04, 0.1, 0.9])
    seen = []

    def score(net, scans, half):
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        return next(scripted)

    monkeypatch.setattr(loop, "validate", score)
    settings = ctssl.Settings(steps=20, batch=1, crop=16, evaluations=10, patience=3)
    net = ctssl.segmenter(tiny, head="linear")
    curve = loop.fit(net, [SCAN], [SCAN] * 5, settings, **where(tmp_path)).curve
    assert [row["step"] for row in curve] == list(range(2, 20, 2)) and curve[-1]["dsc"] == 0.1
    for key, value in net.state_dict().items():
        assert torch.equal(value, seen[5][key])


def test_few_validation_cases_choose_no_weights(tiny, monkeypatch, tmp_path):
    """Below five their ranking is luck: the curve is kept, the weights are the last ones."""
    scripted = iter([0.9, 0.1, 0.1, 0.1])
    monkeypatch.setattr(loop, "validate", lambda *_, **__: next(scripted))
    settings = ctssl.Settings(steps=4, batch=1, crop=16, evaluations=4, patience=1)
    net = ctssl.segmenter(tiny, head="linear")
    curve = loop.fit(net, [SCAN], [SCAN] * 4, settings, **where(tmp_path)).curve
    assert [row["dsc"] for row in curve] == [0.9, 0.1, 0.1, 0.1]
    state = load_file(tmp_path / "u" / "state-4.safetensors")
    for key, value in net.state_dict().items():
        assert torch.equal(value, state[f"net.{key}"])


def test_validation_is_the_mean_over_whole_scans_and_the_labels_they_have():
    """By hand: a network that repeats the image; label 2 is in one of the two scans."""

    class Says(torch.nn.Module):
        window, classes, labels = 8, 3, {1: "a", 2: "b"}

        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            return (
                50
                * torch.nn.functional.one_hot((2 * x[:, 0]).round().long(), 3).permute(0, 4, 1, 2, 3).float()
            )

    rng = np.random.default_rng(0)
    found = [rng.integers(0, 3, (16, 16, 16)), rng.integers(0, 2, (8, 8, 24))]
    true = [rng.integers(0, 3, (16, 16, 16)), rng.integers(0, 2, (8, 8, 24))]
    scans = [
        PreparedCase((a / 2).astype(np.float16)[None], b.astype(np.uint8), np.eye(4), "x")
        for a, b in zip(found, true, strict=True)
    ]
    first = np.mean([ctssl.metrics.dsc(found[0] == k, true[0] == k) for k in (1, 2)])
    expected = (first + ctssl.metrics.dsc(found[1] == 1, true[1] == 1)) / 2
    net, seen = Says(), set()
    net.register_forward_pre_hook(lambda *_: seen.add(torch.is_autocast_enabled("cpu")))
    assert validate(net, scans) == pytest.approx(expected) and seen == {False}
    assert validate(net, scans, half=True) == pytest.approx(expected) and seen == {False, True}


def test_a_gpu_that_emulates_bf16_is_not_asked_for_it(monkeypatch):
    for supported in (True, False):
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s or including_emulation
        )
        assert multiplies_bf16(torch.device("cuda")) == supported
    assert not multiplies_bf16(torch.device("cpu"))


@pytest.mark.filterwarnings("default:.*no instructions for bf16")
def test_bf16_is_warned_of_where_it_is_slow(monkeypatch, recwarn):
    for supported in (True, False):
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda s=supported: s)
        warn_of_slow_bf16(torch.device("cpu"))
        assert len(recwarn) == (not supported)
    assert "cpu has no instructions for bf16" in str(recwarn[0].message)


SHARED = """
import sys, torch, torch.distributed as dist
from ctssl.finetuning.loop import share_gradients

dist.init_process_group("gloo")
rank = dist.get_rank()
net = torch.nn.Linear(3, 2)
for number, weight in enumerate(net.parameters()):
    weight.grad = torch.full_like(weight, float(10 * number + 4 * rank))
share_gradients(net, 2)
torch.save([weight.grad for weight in net.parameters()], f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_devices_share_their_gradients(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    for done in fork.run_pair(tmp_path / "shared.py", tmp_path):
        assert done.returncode == 0, done.stderr[-2000:]
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert [float(grad.unique()) for grad in found] == [2.0, 12.0]  # the means of 0 and 4, of 10 and 14


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_blocks_far_from_the_end_learn_more_slowly(name):
    from tests.support.tiny import SMALL

    net = ctssl.segmenter(ENCODERS[name](**SMALL[name]), head="linear")
    settings = ctssl.Settings(encoder_lr=1.0, lr=2.0, layer_decay=0.5)
    peaks = {
        id(p): group["peak"]
        for group in loop.groups(net, settings, from_scratch=False)
        for p in group["params"]
    }
    assert set(peaks) == {id(p) for p in net.parameters()}
    blocks = [peaks[id(next(b.parameters()))] for b in net.encoder.blocks]
    assert all(a < b for a, b in itertools.pairwise(blocks))
    assert peaks[id(net.encoder.patch_embed.proj.weight)] < blocks[0] and blocks[-1] <= 1.0
    assert {peaks[id(p)] for p in net.head.parameters()} == {2.0}


def test_rates_warm_up_and_fall_to_zero():
    rates = [loop.rate(step, 100, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)]) and rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0.0)


def test_large_gradients_are_clipped(tiny, monkeypatch):
    net = ctssl.segmenter(tiny, head="linear")
    image, label = torch.rand(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16, dtype=torch.long)
    monkeypatch.setattr(loop, "criterion", lambda _: lambda logits, _: 1e6 * logits.square().sum())
    opt = torch.optim.SGD(net.parameters(), lr=1.0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    loop.descend(net, opt, image, label, half=False, world=1)
    moved = torch.cat([(v - before[k]).flatten() for k, v in net.state_dict().items()])
    assert moved.norm().item() == pytest.approx(1.0, rel=1e-3)


def test_the_average_of_the_weights_is_what_is_kept(tiny, tmp_path):
    """Without validation: after one step the slow start gives the average most of the new weights, but not all."""
    scan = np.random.default_rng(0).random((24, 24, 24)).astype(np.float16)
    mask = np.zeros((24, 24, 24), np.uint8)
    mask[8:16, 8:16, 8:16] = 1
    found = {}
    for ema in (0.0, 0.9):
        net = ctssl.segmenter(copy.deepcopy(tiny), head="linear")
        settings = dataclasses.replace(QUICK, steps=3, ema=ema, warmup=0.0)
        loop.fit(
            net,
            [PreparedCase(scan[None], mask, np.eye(4), "x")],
            [],
            settings,
            **(where(tmp_path / str(ema)) | {"from_scratch": True}),
        )
        found[ema] = torch.cat([v.flatten() for v in net.state_dict().values() if v.is_floating_point()])
    start = torch.cat(
        [v.flatten() for v in ctssl.segmenter(tiny, head="linear").encoder.state_dict().values()]
    )
    assert not torch.equal(found[0.0], found[0.9])
    moved = [(found[ema][: len(start)] - start).norm() for ema in (0.0, 0.9)]
    assert 0 < moved[1] < moved[0]
