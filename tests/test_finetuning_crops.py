"""The crops that a training draws."""

import dataclasses

import numpy as np
import torch

import ctssl
from ctssl.finetuning import crops
from tests.support.tiny import QUICK


def test_crops_depend_on_nothing_but_settings_and_step():
    scans = [
        (
            np.random.default_rng(i).random((1, 20, 18, 25)),
            np.random.default_rng(i).random((20, 18, 25)) > 0.9,
        )
        for i in (0, 1)
    ]
    for step in (0, 7):
        for one, two in zip(crops.draw(scans, QUICK, step), crops.draw(scans, QUICK, step), strict=True):
            assert torch.equal(one, two)
    assert not torch.equal(crops.draw(scans, QUICK, 0)[0], crops.draw(scans, QUICK, 1)[0])


def test_crops_keep_image_and_label_together():
    label = np.zeros((40, 30, 20), np.uint8)
    label[12:20, 3:9, 11:15] = 1
    plain = ctssl.Settings(batch=8, crop=16, intensity=0.0, foreground=1.0, trim=1.0, warp=0.0, degrade=0.0)
    image, cut = crops.draw([(label.astype(np.float32)[None], label)], plain, 3)
    assert torch.equal(image, cut.float()) and all(one.any() for one in cut)
    warped = dataclasses.replace(plain, warp=1.0)
    image, cut = crops.draw([(label.astype(np.float32)[None], label)], warped, 3)
    assert not torch.equal(image, cut.float())  # linear and nearest
    hits = ((image > 0.5) & (cut > 0)).sum()
    assert 2 * hits / ((image > 0.5).sum() + (cut > 0).sum()) > 0.95


def test_devices_draw_the_crops_that_one_device_would():
    scans = [
        (np.random.default_rng(i).random((1, 20, 18, 25)), np.ones((20, 18, 25), np.uint8)) for i in (0, 1)
    ]
    whole = crops.draw(scans, dataclasses.replace(QUICK, batch=4), 5)
    parts = [crops.draw(scans, dataclasses.replace(QUICK, batch=2), 5, rank=rank) for rank in (0, 1)]
    for one, two in zip(whole, zip(*parts, strict=True), strict=True):
        assert torch.equal(one, torch.cat(two))


def test_crops_drawn_ahead_are_those_of_each_step():
    rng = np.random.default_rng(0)
    scans = [(rng.random((1, 20, 24, 18), np.float32), (rng.random((20, 24, 18)) > 0.9).astype(np.uint8))]
    settings = ctssl.Settings(crop=16, batch=2)
    for workers in (0, 2):
        drawn = crops.batches(scans, settings, 5, workers=workers)
        for step in (5, 6, 7):
            for one, two in zip(next(drawn), crops.draw(scans, settings, step), strict=True):
                assert torch.equal(one, two)


def test_a_gpu_shares_the_cores_with_its_neighbours(monkeypatch):
    monkeypatch.setattr(crops.os, "cpu_count", lambda: 16)
    assert (crops.workers_for(torch.device("cpu")), crops.workers_for(torch.device("cuda"))) == (0, 8)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert crops.workers_for(torch.device("cuda")) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "32")
    assert crops.workers_for(torch.device("cuda")) == 0
