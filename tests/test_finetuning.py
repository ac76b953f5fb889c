"""Fine-tuning on small labelled scans: it learns, resumes exactly, holds out, and refuses bad data before training."""

import contextlib
import copy
import csv
import dataclasses
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

import ctssl
from ctssl import finetuning, precision, sampling
from ctssl.cli.main import main
from ctssl.datasets import splits
from ctssl.datasets.case import Case
from ctssl.datasets.layouts import find_cases
from ctssl.encoders import ENCODERS
from ctssl.finetuning import loop as fitting
from ctssl.finetuning import plan as planning
from ctssl.volume.volume import Volume

QUICK = ctssl.Settings(steps=4, batch=1, crop=16, save_minutes=0, ema=0.5)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return ctssl.Swin(12, depths=(1, 1), heads=(2, 4), window=4, patch=2, merge_last=False)


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


def test_an_interrupted_training_ends_as_an_uninterrupted_one(labelled, tiny, tmp_path, monkeypatch):
    def train(out):
        encoder = ctssl.Swin(**tiny.config)
        encoder.load_state_dict(tiny.state_dict())
        return ctssl.finetune(labelled, model=encoder, out=out, settings=QUICK, progress=False)

    train(tmp_path / "whole")
    draw = fitting.draw

    def stop_at_two(scans, settings, step, *, rank):
        if step == 2:
            raise KeyboardInterrupt
        return draw(scans, settings, step, rank=rank)

    monkeypatch.setattr(fitting, "draw", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "halves")
    assert not (tmp_path / "halves" / "config.json").exists()
    seen = []
    monkeypatch.setattr(fitting, "draw", lambda *a, **k: (seen.append(a[2]), draw(*a, **k))[1])
    train(tmp_path / "halves")
    assert seen == [2, 3]
    one, two = (ctssl.load_segmenter(tmp_path / name).state_dict() for name in ("whole", "halves"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=0, rtol=0, msg=key)


def test_a_damaged_state_says_what_to_do(labelled, tiny, tmp_path, monkeypatch):
    whole = fitting.descend
    steps = itertools.count()

    def stopped(*args, **kwargs):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(fitting, "descend", stopped)
    how = dict(model=tiny, out=tmp_path / "m", settings=QUICK, hold_out=["case2"], progress=False)
    with contextlib.suppress(KeyboardInterrupt):
        ctssl.finetune(labelled, **how)
    monkeypatch.setattr(fitting, "descend", whole)
    (weights,) = (tmp_path / "m" / ".unfinished").glob("*.safetensors")
    state = tmp_path / "m" / ".unfinished" / "state.json"
    kept = weights.read_bytes(), state.read_bytes()
    for file, content in ((weights, kept[0][:-200]), (state, kept[1][:50]), (state, b"[]")):
        file.write_bytes(content)
        with pytest.raises(ValueError, match="state is damaged .*; remove that folder"):
            ctssl.finetune(labelled, **how)
        weights.write_bytes(kept[0])
        state.write_bytes(kept[1])
    assert ctssl.finetune(labelled, **how).held_out


def test_a_label_that_nobody_has_raises_no_score(labelled, tiny, tmp_path):
    """dataset.json names two labels, the masks hold one: of the other there is nothing to judge."""
    (labelled / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "tumour": 1, "node": 2}}))
    report = ctssl.finetune(
        labelled, model=tiny, out=tmp_path / "m", settings=QUICK, hold_out=["case2"], progress=False
    )
    assert list(report.held_out["case2"]) == ["tumour"]
    assert ctssl.load_segmenter(tmp_path / "m").labels == {1: "tumour", 2: "node"}


def test_an_unfinished_training_with_other_settings_is_not_mixed_up(labelled, tiny, tmp_path, monkeypatch):
    def broken(*args):
        raise KeyboardInterrupt

    draw = fitting.draw
    monkeypatch.setattr(fitting, "draw", lambda s, t, step, rank: broken() if step == 2 else draw(s, t, step))
    with pytest.raises(KeyboardInterrupt):
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    with pytest.raises(ValueError, match="unfinished training with other settings"):
        other = dataclasses.replace(QUICK, lr=0.5)
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=other, progress=False)


def test_from_scratch_forgets_the_weights(tiny):
    other = finetuning.fresh(tiny, seed=5)
    assert other.config == tiny.config and not torch.equal(
        other.patch_embed.proj.weight, tiny.patch_embed.proj.weight
    )


def test_a_finished_model_is_not_replaced(labelled, tiny, tmp_path):
    tiny.save_pretrained(tmp_path / "m")
    before = (tmp_path / "m" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="finished model"):
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK)
    assert (tmp_path / "m" / "model.safetensors").read_bytes() == before


def test_crops_depend_on_nothing_but_settings_and_step():
    scans = [
        (np.random.default_rng(i).random((20, 18, 25)), np.random.default_rng(i).random((20, 18, 25)) > 0.9)
        for i in (0, 1)
    ]
    for step in (0, 7):
        for one, two in zip(fitting.draw(scans, QUICK, step), fitting.draw(scans, QUICK, step), strict=True):
            assert torch.equal(one, two)
    assert not torch.equal(fitting.draw(scans, QUICK, 0)[0], fitting.draw(scans, QUICK, 1)[0])


def test_crops_keep_image_and_label_together():
    label = np.zeros((40, 30, 20), np.uint8)
    label[12:20, 3:9, 11:15] = 1
    plain = ctssl.Settings(batch=8, crop=16, intensity=0.0, foreground=1.0, trim=1.0, warp=0.0, degrade=0.0)
    image, cut = fitting.draw([(label.astype(np.float32), label)], plain, 3)
    assert torch.equal(image, cut.float()) and all(one.any() for one in cut)
    warped = dataclasses.replace(plain, warp=1.0)
    image, cut = fitting.draw([(label.astype(np.float32), label)], warped, 3)
    assert not torch.equal(image, cut.float())  # linear and nearest
    hits = ((image > 0.5) & (cut > 0)).sum()
    assert 2 * hits / ((image > 0.5).sum() + (cut > 0).sum()) > 0.95


def test_intensity_changes_stay_in_the_window_and_come_by_chance():
    image = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    assert sampling.degraded(image, np.random.default_rng(0), chance=0.0) is image
    found = [sampling.degraded(image, np.random.default_rng(seed), chance=1.0) for seed in range(8)]
    assert all(one.shape == image.shape and one.min() >= 0 and one.max() <= 1 for one in found)
    assert min(np.abs(one - image).mean() for one in found) > 0.01
    some = sum(
        sampling.degraded(image, np.random.default_rng(seed), chance=0.15) is image for seed in range(200)
    )
    assert pytest.approx(some, abs=25) == 200 * 0.85**4  # left alone


def test_a_small_scan_lies_anywhere_in_the_crop_and_a_trimmed_one_keeps_its_tumour():
    rng = np.random.default_rng(0)
    starts = np.array([sampling.anywhere((10, 30, 16), 16, rng) for _ in range(400)])
    assert [(c.min(), c.max()) for c in starts.T] == [(-6, 0), (0, 14), (0, 0)]
    around = (3, 29, 7)
    for _ in range(100):
        start = sampling.anywhere((10, 30, 16), 16, rng, around)
        assert all(s <= c < s + 16 for s, c in zip(start, around, strict=True))
        box = sampling.random_part((10, 30, 16), rng, around)
        assert all(
            part.start <= c < part.stop <= n for part, c, n in zip(box, around, (10, 30, 16), strict=True)
        )
    sizes = np.array(
        [[part.stop - part.start for part in sampling.random_part((40, 40, 40), rng)] for _ in range(300)]
    )
    assert sizes.min() == 20 and sizes.max() == 40
    image = np.ones((16, 16, 16), np.float32)  # what is trimmed off is air, as outside a scan
    settings = ctssl.Settings(batch=1, crop=16, intensity=0.0, trim=1.0, warp=0.0, degrade=0.0)
    one, _ = fitting.augmented(image, image.astype(np.uint8), settings, rng)
    assert 16**3 / 8 <= one.sum() < 16**3


def test_devices_draw_the_crops_that_one_device_would():
    scans = [(np.random.default_rng(i).random((20, 18, 25)), np.ones((20, 18, 25), np.uint8)) for i in (0, 1)]
    whole = fitting.draw(scans, dataclasses.replace(QUICK, batch=4), 5)
    parts = [fitting.draw(scans, dataclasses.replace(QUICK, batch=2), 5, rank=rank) for rank in (0, 1)]
    for one, two in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(two))


def test_crops_drawn_ahead_are_those_of_each_step():
    rng = np.random.default_rng(0)
    scans = [(rng.random((20, 24, 18), np.float32), (rng.random((20, 24, 18)) > 0.9).astype(np.uint8))]
    settings = ctssl.Settings(crop=16, batch=2)
    for workers in (0, 2):
        drawn = fitting.batches(scans, settings, 5, workers=workers)
        for step in (5, 6, 7):
            for one, two in zip(next(drawn), fitting.draw(scans, settings, step), strict=True):
                assert torch.equal(one, two)


def test_a_gpu_shares_the_cores_with_its_neighbours(monkeypatch):
    monkeypatch.setattr(fitting.os, "cpu_count", lambda: 16)
    assert (fitting.workers_for(torch.device("cpu")), fitting.workers_for(torch.device("cuda"))) == (0, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert fitting.workers_for(torch.device("cuda")) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert fitting.workers_for(torch.device("cuda")) == 0


def test_turned_cubes_are_the_voxels_that_they_should_be():
    array = np.random.default_rng(0).random((24, 24, 24)).astype(np.float32)
    centre, size = np.array([11.5, 11.5, 11.5]), 12
    inside = array[6:18, 6:18, 6:18]
    (same,) = sampling.warped((array,), centre, size, np.eye(3), orders=(1,))
    np.testing.assert_allclose(same, inside, atol=1e-6)
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    (turned,) = sampling.warped((array,), centre, size, quarter, orders=(1,))
    np.testing.assert_allclose(turned, np.rot90(inside, -1, axes=(0, 1)), atol=1e-5)
    for seed in range(5):
        matrix = sampling.turned_and_scaled(np.random.default_rng(seed), degrees=20, zoom=1.3)
        scale = np.cbrt(np.linalg.det(matrix))
        np.testing.assert_allclose(matrix @ matrix.T, scale**2 * np.eye(3), atol=1e-9)
        assert 1 / 1.3 <= scale <= 1.3


def test_the_best_weights_by_validation_are_kept_and_a_training_without_gain_ends(
    tiny, monkeypatch, tmp_path
):
    """With a scripted validation: the weights of the best moment of its second half come back, and `patience` evaluations later
    it ends. Luck at the start, and a single good evaluation at the end of a slump, change nothing."""
    scripted = iter([0.9, 0.1, 0.1, 0.1, 0.1, 0.8, 0.05, 0.04, 0.1, 0.9])
    seen = []

    def score(net, crops, device, half):
        seen.append({k: v.clone() for k, v in net.state_dict().items()})
        return next(scripted)

    monkeypatch.setattr(fitting, "crop_dsc", score)
    scan = (np.random.default_rng(0).random((20, 20, 20)).astype(np.float32), np.ones((20, 20, 20), np.uint8))
    settings = ctssl.Settings(steps=20, batch=1, crop=16, evaluations=10, patience=3)
    net = ctssl.segmenter(tiny, head="linear")
    facts = {"from_scratch": False}
    curve = fitting.fit(net, [scan], [scan], settings, unfinished=tmp_path / "u", facts=facts, progress=False)
    assert [row["step"] for row in curve] == list(range(2, 20, 2)) and curve[-1]["dsc"] == 0.1
    for key, value in net.state_dict().items():
        assert torch.equal(value, seen[5][key])


def test_the_dsc_of_crops_is_that_of_all_their_voxels_together():
    class Says(torch.nn.Module):
        classes = 3

        def forward(self, x):
            return torch.nn.functional.one_hot(x[:, 0].long(), 3).permute(0, 4, 1, 2, 3).float()

    rng = np.random.default_rng(0)
    pairs = [rng.integers(0, 3, (2, 1, 1, 6, 6, 6)) for _ in range(4)]
    crops = [(torch.from_numpy(a.astype(np.float32)), torch.from_numpy(b)) for a, b in pairs]
    found, true = (np.concatenate([pair[i].ravel() for pair in pairs]) for i in (0, 1))
    expected = np.mean([ctssl.metrics.dsc(found == k, true == k) for k in (1, 2)])
    assert fitting.crop_dsc(Says(), crops, torch.device("cpu")) == pytest.approx(expected)


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 5, 3), (3, 3, 3)])
def test_half_precision_gives_the_gradients_of_full_precision_on_a_few_planes(size):
    """In plain bf16 they hold memory that nobody wrote, on some processors."""
    torch.manual_seed(0)
    conv, image, away = (
        torch.nn.Conv3d(32, 32, 3, padding=1),
        torch.randn(4, 32, *size),
        torch.randn(4, 32, *size),
    )
    grads = []
    for enabled in (False, True):
        conv.zero_grad()
        litter = [torch.full((conv.weight.numel(),), torch.nan) for _ in range(8)]
        del litter
        with precision.half("cpu", enabled=enabled):
            found = conv(image)
        found.float().backward(away)
        grads.append(conv.weight.grad.clone())
    assert torch.isfinite(grads[1]).all()
    assert (grads[1] - grads[0]).abs().max() < 0.03 * grads[0].abs().max()
    with precision.half("cpu", enabled=True):
        assert conv(torch.randn(1, 32, 8, 8, 8)).dtype == torch.bfloat16  # where it pays, it is used


def test_validation_patients_are_of_the_training_side_and_few_patients_are_all_trained_on():
    cases = [case(f"{p}{i}", patient=p) for p in "abcdefghijkl" for i in range(2)]
    chosen = splits.validation(cases, 0.2, 0)
    assert len(chosen) == 4 and len({name[0] for name in chosen}) == 2
    assert splits.validation(cases[:18], 0.2, 0) == [] == splits.validation(cases, 0.0, 0)


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


SHARED = """
import sys, torch, torch.distributed as dist
from ctssl.fitting import share_gradients

dist.init_process_group("gloo")
rank = dist.get_rank()
net = torch.nn.Linear(3, 2)
for number, weight in enumerate(net.parameters()):
    weight.grad = torch.full_like(weight, float(10 * number + 4 * rank))
share_gradients(net, 2)
torch.save([weight.grad for weight in net.parameters()], f"{sys.argv[1]}/{rank}.pt")
dist.destroy_process_group()
"""


def test_devices_share_their_gradients(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*command, str(tmp_path / "shared.py"), str(tmp_path)], check=True, capture_output=True)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert [float(grad.unique()) for grad in found] == [2.0, 12.0]  # the means of 0 and 4, of 10 and 14


def test_cases_are_divided_by_share_or_by_name(labelled):
    cases = find_cases(labelled).cases
    train, held = splits.divide(cases, 0.3, 0)
    assert len(held) == 1 and len(train) == 2 and splits.divide(cases, 0.3, 0) == (train, held)
    assert [c.name for c in splits.divide(cases, ["case2"], 0)[1]] == ["case2"]
    for wrong, words in (
        (["nobody"], "no such cases"),
        (1.5, "share from 0"),
        (["case0", "case1", "case2"], "nothing is left"),
    ):
        with pytest.raises(ValueError, match=words):
            splits.divide(cases, wrong, 0)


def test_folders_apart_and_the_names_of_nnunet(labelled):
    apart = find_cases(images=labelled / "images", labels=labelled / "labels").cases
    assert [c.name for c in apart] == ["case0", "case1", "case2"]
    for i in range(3):
        (labelled / "images" / f"case{i}.nii.gz").rename(labelled / "images" / f"case{i}_0000.nii.gz")
    (labelled / "images").rename(labelled / "imagesTr")
    (labelled / "labels").rename(labelled / "labelsTr")
    assert [c.name for c in find_cases(labelled).cases] == ["case0", "case1", "case2"]


def test_bad_data_is_refused_before_any_training(labelled, tiny, tmp_path):
    def refused(words, kind=ValueError, **kwargs):
        with pytest.raises(kind, match=words):
            ctssl.finetune(
                **({"data": labelled} | kwargs),
                model=tiny,
                out=tmp_path / "m",
                settings=QUICK,
                hold_out=0,
                progress=False,
            )
        assert not (tmp_path / "m" / "model.safetensors").exists()

    refused("not both", images=labelled / "images")
    refused("no folder", FileNotFoundError, data=tmp_path / "nothing")
    refused("in a layout that ctssl knows", FileNotFoundError, data=tmp_path)
    label = labelled / "labels" / "case0.nii.gz"
    mask = ctssl.read(label)
    kept = label.read_bytes()
    moved = mask.affine.copy()
    moved[0, 3] += 40
    for words, wrong in (
        ("its mask", Volume(mask.array[:-1], mask.affine)),
        ("40.0 mm apart", Volume(mask.array, moved)),
        ("whole numbers", Volume(mask.array * 0.5, mask.affine)),
    ):
        wrong.save(label, overwrite=True)
        refused(words)
    label.write_bytes(kept)
    label.unlink()
    refused("case0", FileNotFoundError)
    label.write_bytes(kept)
    for path in (labelled / "labels").iterdir():
        Volume(mask.array * 0, mask.affine).save(path, overwrite=True)
    refused("masks are empty")


def test_labels_move_with_the_scan_onto_the_models_grid(ball):
    from ctssl.volume.grids import prepare
    from ctssl.zoo import Preprocess

    scan, mask = ball
    there = prepare(scan, Preprocess())
    moved = finetuning.onto_grid(mask, there)
    assert moved.shape == there.shape
    volume_mm3 = mask.array.sum() * 12.0
    assert moved.sum() * 8.0 == pytest.approx(volume_mm3, rel=0.1)
    assert there.array[moved == 1].mean() > 0.66  # the ball is bright: 200 HU is 0.7


def case(name, patient="", split=""):
    return Case(name, Path(name), Path(name), patient=patient or name, split=split)


def test_the_scans_of_a_patient_stay_together():
    cases = [case(f"{p}{i}", patient=p) for p in "abcdefgh" for i in range(2)]
    for seed in range(5):
        train, held = splits.divide(cases, 0.25, seed)
        assert len(held) == 4 and not {c.patient for c in train} & {c.patient for c in held}
    with pytest.raises(ValueError, match="scans on both sides"):
        splits.divide(cases, ["a0"], 0)
    folds = [set(splits.part(cases, 3, fold, 0)) for fold in range(3)]
    assert sorted(len(f) for f in folds) == [4, 6, 6] and set.union(*folds) == {c.name for c in cases}
    with pytest.raises(ValueError, match="fold 3 of 3"):
        splits.part(cases, 3, 3, 0)
    some = splits.few(cases, 3, 0)
    assert len(some) == 6 and len({c.patient for c in some}) == 3
    with pytest.raises(ValueError, match="8 patients"):
        splits.few(cases, 9, 0)


def test_a_table_says_which_cases_are_held_out():
    cases = [case("a", split="train"), case("b", split="test"), case("c", split="training")]
    assert [c.name for c in splits.divide(cases, None, 0)[1]] == ["b"]
    assert splits.divide(cases, 0, 0)[1] == []


def test_the_spacing_follows_from_the_tumours():
    def spacing(radius_mm, voxel_mm, organ=False):
        n = round(60 / voxel_mm)
        place = (np.arange(n) - n / 2 + 0.5) * voxel_mm
        x, y, z = np.meshgrid(place, place, place, indexing="ij")
        mask = (x**2 + y**2 + z**2 < radius_mm**2).astype(np.uint8)
        ball = Volume(
            mask + 1 if organ else mask, np.diag([voxel_mm] * 3 + [1.0])
        )  # the tumour is label 2 in an organ
        return planning.fitting_spacing(planning.together([planning.measure(ball, ball)]), 1.5)

    assert spacing(6.0, 1.0) == pytest.approx(1.2, abs=0.02)  # 12 mm across
    assert spacing(25.0, 1.0) == 3.0 and spacing(3.0, 1.0) == 1.0
    assert spacing(6.0, 1.0, organ=True) == pytest.approx(1.2, abs=0.02)
    nothing = planning.Tumours({}, 1.0, np.zeros(0))
    assert planning.fitting_spacing(nothing, 2.0) == 2.0
    assert [
        planning.fitting_crop(planning.Tumours({1: mm}, 1.0, np.zeros(0)), 2.0) for mm in (20.0, 90.0)
    ] == [64, 96]


def test_the_window_follows_from_the_tumours_and_is_kept(labelled, tiny, tmp_path):
    hu = np.linspace(-100, 100, 20001)
    window = lambda values: planning.fitting_window(planning.Tumours({1: 30.0}, 1.0, values), (-500.0, 500.0))  # noqa: E731
    assert window(hu) == (-150.0, 150.0) and window(np.full(9, 40.0)) == (-60.0, 140.0)
    assert window(hu * 9 - 500)[0] == -1020.0 and window(np.zeros(0)) == (-500.0, 500.0)
    settings = dataclasses.replace(QUICK, steps=1)
    for given, kept in (((-160.0, 240.0), (-160.0, 240.0)), (None, (100.0, 300.0))):  # of 200 HU
        ctssl.finetune(
            labelled,
            model=tiny,
            out=tmp_path / "m",
            settings=settings,
            window_hu=given,
            overwrite=True,
            progress=False,
        )
        assert ctssl.load_segmenter(tmp_path / "m").spec.preprocess.window_hu == kept
    frozen = dataclasses.replace(settings, freeze=True)
    ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=frozen, overwrite=True, progress=False)
    assert ctssl.load_segmenter(tmp_path / "m").spec.preprocess.window_hu == (-500.0, 500.0)
    with pytest.raises(ValueError, match="window"):
        ctssl.finetune(
            labelled,
            model=tiny,
            out=tmp_path / "n",
            settings=settings,
            window_hu=(100.0, 100.0),
            progress=False,
        )


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_blocks_far_from_the_end_learn_more_slowly(name):
    from tests.conftest import SMALL

    net = ctssl.segmenter(ENCODERS[name](**SMALL[name]), head="linear")
    settings = ctssl.Settings(encoder_lr=1.0, lr=2.0, layer_decay=0.5)
    peaks = {
        id(p): group["peak"]
        for group in fitting.groups(net, settings, from_scratch=False)
        for p in group["params"]
    }
    assert set(peaks) == {id(p) for p in net.parameters()}
    blocks = [peaks[id(next(b.parameters()))] for b in net.encoder.blocks]
    assert all(a < b for a, b in itertools.pairwise(blocks))
    assert peaks[id(net.encoder.patch_embed.proj.weight)] < blocks[0] and blocks[-1] <= 1.0
    assert {peaks[id(p)] for p in net.head.parameters()} == {2.0}


def test_a_frozen_encoder_stays_as_it_is_and_minutes_end_the_training(labelled, tiny, tmp_path):
    before = {k: v.clone() for k, v in tiny.state_dict().items()}
    settings = dataclasses.replace(QUICK, freeze=True, minutes=0.001)
    finetuning_steps = []
    draw = fitting.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "draw", lambda *a, **k: (finetuning_steps.append(a[2]), draw(*a, **k))[1])
        ctssl.finetune(
            labelled, model=tiny, out=tmp_path / "m", settings=settings, spacing_mm=3.0, progress=False
        )
    assert finetuning_steps == list(range(fitting.TIMED))
    kept = ctssl.load_segmenter(tmp_path / "m")
    assert kept.spec.preprocess.spacing_mm == 3.0
    for key, value in kept.encoder.state_dict().items():
        assert torch.equal(value, before[key])


def test_all_folds_from_the_command(labelled, tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "tiny")
    assert (
        main(
            [
                "finetune",
                str(labelled),
                "--model",
                str(tmp_path / "tiny"),
                "--out",
                str(tmp_path / "m"),
                "--folds",
                "3",
                "--steps",
                "1",
                "--crop",
                "16",
                "--batch",
                "1",
                "--json",
            ]
        )
        == 0
    )
    reports = json.loads(capsys.readouterr().out)
    assert sorted(name for report in reports for name in report["held_out"]) == ["case0", "case1", "case2"]
    assert all((tmp_path / "m" / f"fold{i}" / "model.safetensors").is_file() for i in range(3))
    assert main(["finetune", str(labelled), "--out", str(tmp_path / "n"), "--fold", "1"]) == 2
    assert "--folds" in capsys.readouterr().err


def test_folds_go_on_where_they_stopped(labelled, tiny, tmp_path, capsys, monkeypatch):
    """Killed between two folds, and within one: what is finished is not done again."""
    tiny.save_pretrained(tmp_path / "tiny")
    ask = [
        "finetune",
        str(labelled),
        "--model",
        str(tmp_path / "tiny"),
        "--out",
        str(tmp_path / "m"),
        "--folds",
        "3",
        "--steps",
        "2",
        "--crop",
        "16",
        "--batch",
        "1",
        "--json",
    ]
    whole, calls = finetuning.fit, []

    def killed(*args, **kwargs):
        calls.append(kwargs["unfinished"].parent.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(finetuning, "fit", killed)
    with contextlib.suppress(KeyboardInterrupt):
        main(ask)
    capsys.readouterr()
    assert main([*ask, "--resume"]) == 0 and calls == ["fold0", "fold1", "fold1", "fold2"]
    reports = json.loads(capsys.readouterr().out)
    assert sorted(name for report in reports for name in report["held_out"]) == ["case0", "case1", "case2"]
    assert main(ask) == 0 and len(calls) == 4
    for other in (["--freeze", "encoder"], ["--spacing", "3"], ["--head", "linear"]):
        assert main([*ask, *other]) == 2
        assert "fold0 holds a model that was trained with another" in capsys.readouterr().err
    assert len(calls) == 4
    assert main([*ask, "--steps", "1", "--overwrite"]) == 0 and len(calls) == 7


def test_a_finished_request_is_not_done_again(labelled, tiny, tmp_path, monkeypatch):
    how = dict(model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    first = ctssl.finetune(labelled, **how)
    monkeypatch.setattr(finetuning, "fit", lambda *_, **__: pytest.fail("trained again"))
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


def test_files_of_the_user_stay(labelled, tiny, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "cases.csv").write_text("id\n1\n")
    with pytest.raises(FileExistsError, match="holds a cases.csv that is not of a model"):
        ctssl.finetune(labelled, model=tiny, out=mine, settings=QUICK, progress=False)
    assert (mine / "cases.csv").read_text() == "id\n1\n" and len(list(mine.iterdir())) == 1
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
        "report.json",
        "seen.json",
    }  # no scores of another model


def test_settings_that_cannot_be_are_refused_before_anything_is_read(labelled, tmp_path, capsys):
    ask = ["finetune", str(labelled), "--out", str(tmp_path / "m")]
    for flags, words in (
        (["--steps", "0"], "steps=0"),
        (["--batch", "-1"], "batch=-1"),
        (["--validation", "1"], "validation=1"),
        (["--ema", "1"], "ema=1"),
        (["--minutes", "0"], "minutes=0"),
        (["--layer-decay", "0"], "layer_decay=0"),
        (["--head", "unet"], "there are dynunet, light"),
        (["--spacing", "0"], "no spacing to work at"),
        (["--few-shot", "9"], "there are 2 patients"),
        (["--folds", "0"], "give at least 2"),
        (["--patience", "0"], "patience=0"),
    ):
        assert main([*ask, *flags]) == 2
        assert words in capsys.readouterr().err and not (tmp_path / "m").exists()
    if not torch.cuda.is_available():
        assert main([*ask, "--device", "cuda"]) == 2 and "no CUDA" in capsys.readouterr().err


def test_every_flag_reaches_the_training(labelled, tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "tiny")
    ask = [
        "finetune",
        str(labelled),
        "--model",
        str(tmp_path / "tiny"),
        "--out",
        str(tmp_path / "m"),
        "--steps",
        "2",
        "--crop",
        "16",
        "--batch",
        "1",
        "--hold-out",
        "case2",
        "--few-shot",
        "1",
        "--freeze",
        "encoder",
        "--ema",
        "0.5",
        "--bf16",
        "--spacing",
        "3",
        "--window",
        "-100",
        "300",
        "--validation",
        "0.2",
        "--layer-decay",
        "0.7",
        "--seed",
        "3",
    ]
    assert main(ask) == 0
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    for key, value in dict(
        steps=2, crop=16, batch=1, freeze=True, ema=0.5, bf16=True, validation=0.2, layer_decay=0.7, seed=3
    ).items():
        assert report["settings"][key] == value, key
    assert len(report["train"]) == 1 and list(report["held_out"]) == ["case2"]
    assert (report["spacing_mm"], report["window_hu"]) == (3.0, [-100.0, 300.0])
    kept = ctssl.load_segmenter(tmp_path / "m")
    for key, value in tiny.state_dict().items():
        assert torch.equal(kept.encoder.state_dict()[key], value)  # frozen


def test_few_cases_have_a_curve_of_the_loss(labelled, tiny, tmp_path):
    report = ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    assert [set(row) for row in report.curve] == [{"step", "loss"}] * 4 and report.validated == []
    assert (tmp_path / "m" / "curves.png").read_bytes().startswith(b"\x89PNG")


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


def test_held_out_cases_that_the_encoder_has_seen_are_told(labelled, tmp_path):
    from ctssl.volume.volume import voxel_hash

    folder = ctssl.Swin(12, depths=(1, 1), heads=(2, 4), window=4, patch=2, merge_last=False).save_pretrained(
        tmp_path / "seen"
    )
    hashes = [voxel_hash(ctssl.read(labelled / "images" / f"case{i}.nii.gz"), "salt") for i in (0, 2)]
    (folder / "seen.json").write_text(json.dumps({"salt": "salt", "voxels": hashes, "series": []}))
    report = ctssl.finetune(
        labelled, model=folder, out=tmp_path / "m", settings=QUICK, hold_out=["case2"], progress=False
    )
    assert [note.split(":")[0] for note in report.warnings] == [
        "case2"
    ] and "pretrained on this very scan" in report.warnings[0]


def test_the_baselines_network_fits_its_crops(labelled, tmp_path):
    """nnU-Net's rule: crops of 16 voxels can be halved twice."""
    report = ctssl.finetune(
        labelled,
        model="dynunet",
        out=tmp_path / "m",
        settings=dataclasses.replace(QUICK, steps=1, ema=0.0),
        progress=False,
    )
    kept = ctssl.load_segmenter(report.folder)
    assert len(kept.head.up) == 2 and kept.window == 16


def test_a_segmenter_that_could_not_be_loaded_again_is_not_built(tiny):
    for how, words in (
        (dict(classes=3, labels={1: "a"}), "name 1 to 2"),
        (dict(window=513), "1 to 512 voxels"),
    ):
        with pytest.raises(ValueError, match=words):
            ctssl.segmenter(tiny, **how)
    with pytest.raises(ValueError, match="crops of 16 voxels or more"):
        ctssl.segmenter(finetuning.BASELINES["dynunet"](), head="dynunet", window=8)


def test_rates_warm_up_and_fall_to_zero():
    rates = [fitting.rate(step, 100, 0.1) for step in range(101)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)]) and rates[10] == pytest.approx(1.0)
    assert rates[55] == pytest.approx(0.5) and rates[100] == pytest.approx(0.0)


def test_large_gradients_are_clipped(tiny, monkeypatch):
    net = ctssl.segmenter(tiny, head="linear")
    image, label = torch.rand(1, 1, 16, 16, 16), torch.zeros(1, 1, 16, 16, 16, dtype=torch.long)
    monkeypatch.setattr(fitting, "criterion", lambda: lambda logits, _: 1e6 * logits.square().sum())
    opt = torch.optim.SGD(net.parameters(), lr=1.0)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    fitting.descend(net, opt, image, label, half=False, world=1)
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
        fitting.fit(
            net,
            [(scan, mask)],
            [],
            settings,
            unfinished=tmp_path / str(ema),
            facts={"from_scratch": True},
            progress=False,
        )
        found[ema] = torch.cat([v.flatten() for v in net.state_dict().values() if v.is_floating_point()])
    start = torch.cat(
        [v.flatten() for v in ctssl.segmenter(tiny, head="linear").encoder.state_dict().values()]
    )
    assert not torch.equal(found[0.0], found[0.9])
    moved = [(found[ema][: len(start)] - start).norm() for ema in (0.0, 0.9)]
    assert 0 < moved[1] < moved[0]


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
    with pytest.raises(ValueError, match="case1: the split 'tarin' is none; write train, val or test"):
        splits.divide(find_cases(table("train", "tarin", "test")).cases, None, 0)


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
        "label 2: only held-out cases have it" in note for note in ctssl.finetune(labelled, **how).warnings
    )


def test_a_training_whose_judging_fails_is_not_lost(labelled, tiny, tmp_path, monkeypatch):
    how = dict(model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    monkeypatch.setattr(finetuning, "segment", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ctssl.finetune(labelled, **how)
    monkeypatch.undo()
    monkeypatch.setattr(fitting, "draw", lambda *_, **__: pytest.fail("trained again"))
    assert ctssl.finetune(labelled, **how).held_out
