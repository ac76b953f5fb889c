"""Fine-tuning on small labelled scans: it learns, resumes exactly, holds out, and refuses bad data before training."""

import dataclasses
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import ctssl
from ctssl import finetuning
from ctssl.cli import main
from ctssl.datasets import Case, find_cases
from ctssl.encoders import ENCODERS
from ctssl.volume import Volume

QUICK = ctssl.Settings(steps=4, batch=1, crop=16, save_minutes=0)


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
    draw = finetuning.draw

    def stop_at_two(scans, settings, step):
        if step == 2:
            raise KeyboardInterrupt
        return draw(scans, settings, step)

    monkeypatch.setattr(finetuning, "draw", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "halves")
    assert not (tmp_path / "halves" / "config.json").exists()
    seen = []
    monkeypatch.setattr(
        finetuning, "draw", lambda scans, settings, step: (seen.append(step), draw(scans, settings, step))[1]
    )
    train(tmp_path / "halves")
    assert seen == [2, 3]
    one, two = (ctssl.load_segmenter(tmp_path / name).state_dict() for name in ("whole", "halves"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=0, rtol=0, msg=key)


def test_an_unfinished_training_with_other_settings_is_not_mixed_up(labelled, tiny, tmp_path, monkeypatch):
    def broken(*args):
        raise KeyboardInterrupt

    draw = finetuning.draw
    monkeypatch.setattr(finetuning, "draw", lambda s, t, step: broken() if step == 2 else draw(s, t, step))
    with pytest.raises(KeyboardInterrupt):
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    with pytest.raises(ValueError, match="unfinished training with other settings"):
        other = dataclasses.replace(QUICK, lr=0.5)
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=other, progress=False)


def test_from_scratch_forgets_the_weights(tiny):
    other = finetuning.fresh(tiny, seed=5)
    assert other.config == tiny.config and not torch.equal(other.patch_embed.proj.weight, tiny.patch_embed.proj.weight)


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
        for one, two in zip(finetuning.draw(scans, QUICK, step), finetuning.draw(scans, QUICK, step), strict=True):
            assert torch.equal(one, two)
    assert not torch.equal(finetuning.draw(scans, QUICK, 0)[0], finetuning.draw(scans, QUICK, 1)[0])


def test_crops_keep_image_and_label_together():
    label = np.zeros((40, 30, 20), np.uint8)
    label[12:20, 3:9, 11:15] = 1
    settings = ctssl.Settings(batch=8, crop=16, intensity=0.0, foreground=1.0)
    image, cut = finetuning.draw([(label.astype(np.float32), label)], settings, 3)
    assert torch.equal(image, cut.float()) and all(one.any() for one in cut)


def test_cases_are_divided_by_share_or_by_name(labelled):
    cases = find_cases(labelled).cases
    train, held = finetuning.divide(cases, 0.3, 0)
    assert len(held) == 1 and len(train) == 2 and finetuning.divide(cases, 0.3, 0) == (train, held)
    assert [c.name for c in finetuning.divide(cases, ["case2"], 0)[1]] == ["case2"]
    for wrong, words in (
        (["nobody"], "no such cases"),
        (1.5, "share from 0"),
        (["case0", "case1", "case2"], "nothing is left"),
    ):
        with pytest.raises(ValueError, match=words):
            finetuning.divide(cases, wrong, 0)


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
    from ctssl.volume import prepare
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
        train, held = finetuning.divide(cases, 0.25, seed)
        assert len(held) == 4 and not {c.patient for c in train} & {c.patient for c in held}
    with pytest.raises(ValueError, match="scans on both sides"):
        finetuning.divide(cases, ["a0"], 0)
    folds = [set(finetuning.part(cases, 3, fold, 0)) for fold in range(3)]
    assert sorted(len(f) for f in folds) == [4, 6, 6] and set.union(*folds) == {c.name for c in cases}
    with pytest.raises(ValueError, match="fold 3 of 3"):
        finetuning.part(cases, 3, 3, 0)
    some = finetuning.few(cases, 3, 0)
    assert len(some) == 6 and len({c.patient for c in some}) == 3
    with pytest.raises(ValueError, match="8 patients"):
        finetuning.few(cases, 9, 0)


def test_a_table_says_which_cases_are_held_out():
    cases = [case("a", split="train"), case("b", split="test"), case("c", split="training")]
    assert [c.name for c in finetuning.divide(cases, None, 0)[1]] == ["b"]
    assert finetuning.divide(cases, 0, 0)[1] == []


def test_the_spacing_follows_from_the_tumours(tmp_path):
    def spacing(radius_mm, voxel_mm):
        n = round(60 / voxel_mm)
        place = (np.arange(n) - n / 2 + 0.5) * voxel_mm
        x, y, z = np.meshgrid(place, place, place, indexing="ij")
        mask = (x**2 + y**2 + z**2 < radius_mm**2).astype(np.uint8)
        path = Volume(mask, np.diag([voxel_mm] * 3 + [1.0])).save(tmp_path / "m.nii.gz", overwrite=True)
        return finetuning.fitting_spacing([dataclasses.replace(case("x"), image=path, label=path)], 2.0)

    assert spacing(6.0, 1.0) == pytest.approx(1.2, abs=0.02)  # 12 mm across
    assert spacing(25.0, 1.0) == 2.0 and spacing(3.0, 1.0) == 1.0


@pytest.mark.parametrize("name", ["swin", "vit"])
def test_blocks_far_from_the_end_learn_more_slowly(name):
    from tests.conftest import SMALL

    net = ctssl.segmenter(ENCODERS[name](**SMALL[name]), head="linear")
    settings = ctssl.Settings(encoder_lr=1.0, lr=2.0, layer_decay=0.5)
    peaks = {
        id(p): group["peak"] for group in finetuning.groups(net, settings, from_scratch=False) for p in group["params"]
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
    draw = finetuning.draw
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetuning, "draw", lambda *a: (finetuning_steps.append(a[2]), draw(*a))[1])
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=settings, spacing_mm=3.0, progress=False)
    assert finetuning_steps == list(range(finetuning.TIMED))
    kept = ctssl.load_segmenter(tmp_path / "m")
    assert kept.spec.preprocess.spacing_mm == 3.0
    for key, value in kept.encoder.state_dict().items():
        assert torch.equal(value, before[key])


def test_all_folds_from_the_command(labelled, tiny, tmp_path, capsys):
    tiny.save_pretrained(tmp_path / "tiny")
    assert main(["finetune", str(labelled), "--model", str(tmp_path / "tiny"), "--out", str(tmp_path / "m"), "--folds", "3",
                 "--steps", "1", "--crop", "16", "--batch", "1", "--json"]) == 0  # fmt: skip
    reports = json.loads(capsys.readouterr().out)
    assert sorted(name for report in reports for name in report["held_out"]) == ["case0", "case1", "case2"]
    assert all((tmp_path / "m" / f"fold{i}" / "model.safetensors").is_file() for i in range(3))
    assert main(["finetune", str(labelled), "--out", str(tmp_path / "n"), "--fold", "1"]) == 2
    assert "--folds" in capsys.readouterr().err


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
