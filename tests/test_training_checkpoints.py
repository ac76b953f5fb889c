"""Checkpoints of a pretraining: damaged ones, and those of another run."""

import dataclasses

import pytest
import torch

from tests.support.training import TINY
from training import checkpoints, pretrain


def test_a_damaged_checkpoint_gives_way_to_the_one_before(phantoms, capsys):
    pretrain.pretrain(TINY, phantoms, stop_after=3)
    newest = phantoms / "checkpoint.pt"
    newest.write_bytes(newest.read_bytes()[:-2000])
    state = checkpoints.load_latest(phantoms, TINY)
    assert state is not None and state["step"] == 3 and "damaged" in capsys.readouterr().out
    (phantoms / "checkpoint.before.pt").unlink()
    assert checkpoints.load_latest(phantoms, TINY) is None


def test_a_checkpoint_of_other_settings_is_not_continued(phantoms):
    pretrain.pretrain(TINY, phantoms, stop_after=1)
    with pytest.raises(SystemExit, match="other settings"):
        pretrain.pretrain(dataclasses.replace(TINY, lr=1.0), phantoms)


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_scans_and_processes_alone(phantoms, monkeypatch):
    pretrain.pretrain(TINY, phantoms, stop_after=2)
    state = torch.load(phantoms / "checkpoint.pt", weights_only=True)
    for key, other in (("world", 2), ("corpus", "table-of-other-scans")):
        torch.save({**state, key: other}, phantoms / "checkpoint.pt")
        with pytest.raises(SystemExit, match="was trained with other"):
            pretrain.pretrain(TINY, phantoms)
    torch.save(state, phantoms / "checkpoint.pt")
    pretrain.pretrain(TINY, phantoms)


@pytest.mark.slow
def test_the_damaged_checkpoint_never_takes_the_place_of_a_good_one(phantoms):
    pretrain.pretrain(TINY, phantoms, stop_after=3)
    newest, before = phantoms / "checkpoint.pt", phantoms / "checkpoint.before.pt"
    before.write_bytes(newest.read_bytes())
    newest.write_bytes(newest.read_bytes()[:-2000])
    pretrain.pretrain(TINY, phantoms, stop_after=4)
    assert all(torch.load(path, weights_only=True)["step"] >= 3 for path in (newest, before))
