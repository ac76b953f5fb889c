"""An interrupted training goes on exactly, or says why it cannot."""

import contextlib
import dataclasses
import itertools
import json

import pytest
import torch

import ctssl
from ctssl.finetuning import crops, loop
from tests.support.tiny import QUICK


def stop_at_three(monkeypatch):
    """Interrupt a training in its fourth step."""
    whole, steps = loop.descend, itertools.count()

    def stopped(*args, **kwargs):
        if next(steps) == 3:
            raise KeyboardInterrupt
        return whole(*args, **kwargs)

    monkeypatch.setattr(loop, "descend", stopped)


@pytest.mark.slow
def test_an_interrupted_training_ends_as_an_uninterrupted_one(labelled, tiny, tmp_path, monkeypatch):
    def train(out):
        encoder = ctssl.Swin(**tiny.config)
        encoder.load_state_dict(tiny.state_dict())
        return ctssl.finetune(labelled, model=encoder, out=out, settings=QUICK, progress=False)

    train(tmp_path / "whole")
    draw = crops.draw

    def stop_at_two(scans, settings, step, *, rank):
        if step == 2:
            raise KeyboardInterrupt
        return draw(scans, settings, step, rank=rank)

    monkeypatch.setattr(crops, "draw", stop_at_two)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "halves")
    assert not (tmp_path / "halves" / "config.json").exists()
    seen = []
    monkeypatch.setattr(crops, "draw", lambda *a, **k: (seen.append(a[2]), draw(*a, **k))[1])
    train(tmp_path / "halves")
    assert seen == [2, 3]
    one, two = (ctssl.load_segmenter(tmp_path / name).state_dict() for name in ("whole", "halves"))
    for key in one:
        torch.testing.assert_close(one[key], two[key], atol=0, rtol=0, msg=key)


@pytest.mark.slow
def test_the_seconds_of_a_training_are_those_of_all_its_parts(labelled, tiny, tmp_path, monkeypatch):
    settings = dataclasses.replace(QUICK, save_minutes=0.0)
    how = dict(model=tiny, out=tmp_path / "m", settings=settings, hold_out=["case2"], progress=False)
    with monkeypatch.context() as patch:
        stop_at_three(patch)
        with contextlib.suppress(KeyboardInterrupt):
            ctssl.finetune(labelled, **how)
    state = tmp_path / "m" / ".unfinished" / "state.json"
    kept = json.loads(state.read_text())
    assert 0 < kept["place"]["seconds"] < 600
    kept["place"]["seconds"] += 1000
    state.write_text(json.dumps(kept))
    assert 1000 < ctssl.finetune(labelled, **how).seconds < 1600


@pytest.mark.slow
def test_a_damaged_state_says_what_to_do(labelled, tiny, tmp_path, monkeypatch):
    how = dict(model=tiny, out=tmp_path / "m", settings=QUICK, hold_out=["case2"], progress=False)
    with monkeypatch.context() as patch:
        stop_at_three(patch)
        with contextlib.suppress(KeyboardInterrupt):
            ctssl.finetune(labelled, **how)
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


def test_an_unfinished_training_with_other_settings_is_not_mixed_up(labelled, tiny, tmp_path, monkeypatch):
    def broken(*args):
        raise KeyboardInterrupt

    draw = crops.draw
    monkeypatch.setattr(crops, "draw", lambda s, t, step, rank: broken() if step == 2 else draw(s, t, step))
    with pytest.raises(KeyboardInterrupt):
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK, progress=False)
    with pytest.raises(ValueError, match="unfinished training that differs in settings"):
        other = dataclasses.replace(QUICK, lr=0.5)
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=other, progress=False)
