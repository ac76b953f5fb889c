"""Checkpoints of a pretraining: damaged ones, and those of another run."""

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.support.training import TINY
from training import checkpoints, pretrain


def test_a_damaged_checkpoint_gives_way_to_the_one_before(phantoms, capsys):
    pretrain.pretrain(TINY, phantoms, stop_after=3)
    newest = phantoms / checkpoints.NEWEST
    newest.write_bytes(newest.read_bytes()[:-2000])
    state = checkpoints.load_latest(phantoms, TINY)
    assert state is not None and state["step"] == 3 and "damaged" in capsys.readouterr().out
    (phantoms / checkpoints.BEFORE).unlink()
    assert checkpoints.load_latest(phantoms, TINY) is None


def test_a_checkpoint_of_other_settings_is_not_continued(phantoms):
    pretrain.pretrain(TINY, phantoms, stop_after=1)
    with pytest.raises(SystemExit, match="other settings"):
        pretrain.pretrain(dataclasses.replace(TINY, lr=1.0), phantoms)


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_scans_and_processes_alone(phantoms, monkeypatch):
    pretrain.pretrain(TINY, phantoms, stop_after=2)
    state = checkpoints.read(phantoms / checkpoints.NEWEST)
    for key, other in (("world", 2), ("corpus", "table-of-other-scans")):
        checkpoints.write(phantoms / checkpoints.NEWEST, {**state, key: other})
        with pytest.raises(SystemExit, match="was trained with other"):
            pretrain.pretrain(TINY, phantoms)
    checkpoints.write(phantoms / checkpoints.NEWEST, state)
    pretrain.pretrain(TINY, phantoms)


@pytest.mark.slow
def test_the_damaged_checkpoint_never_takes_the_place_of_a_good_one(phantoms):
    pretrain.pretrain(TINY, phantoms, stop_after=3)
    newest, before = phantoms / checkpoints.NEWEST, phantoms / checkpoints.BEFORE
    before.write_bytes(newest.read_bytes())
    newest.write_bytes(newest.read_bytes()[:-2000])
    pretrain.pretrain(TINY, phantoms, stop_after=4)
    assert all(checkpoints.read(path)["step"] >= 3 for path in (newest, before))


def test_a_checkpoint_comes_back_bit_by_bit_and_is_no_pickle(phantoms):
    task = pretrain.pretrain(TINY, phantoms, stop_after=2)
    state = checkpoints.read(phantoms / checkpoints.NEWEST)
    assert state["task"].keys() == task.state_dict().keys()
    assert all(torch.equal(value, state["task"][key]) for key, value in task.state_dict().items())
    elsewhere = checkpoints.read(phantoms / checkpoints.NEWEST, "meta")
    places = {
        name: value.device.type for own in elsewhere["opt"]["state"].values() for name, value in own.items()
    }
    assert places == {
        "step": "cpu",
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
    }  # AdamW reads its steps on the CPU
    opt, _ = pretrain.optimizer(task, TINY)
    opt.load_state_dict(state["opt"])
    assert (
        opt.state_dict()["state"] and state["step"] == 2 and checkpoints.load_run(phantoms).crop == TINY.crop
    )
    assert "torch.load" not in Path(checkpoints.__file__).read_text()


def test_a_checkpoint_of_an_earlier_ctssl_is_not_started_over(phantoms):
    phantoms.mkdir(parents=True)
    (phantoms / "checkpoint.pt").write_bytes(b"PK")
    with pytest.raises(SystemExit, match="earlier ctssl; finish the run with that one"):
        pretrain.pretrain(TINY, phantoms)
