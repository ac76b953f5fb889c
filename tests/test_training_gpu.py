"""The prepared run on a GPU, as far as it goes without one."""

import dataclasses
import json
import sys
from types import SimpleNamespace

import pytest
import torch

import ctssl
from ctssl.phantom import phantom
from tests.support.training import TINY
from training import checkpoints, gpu, log, pretrain
from training.recipe import find_run
from training.release.encoder import command_of


@pytest.fixture
def run(tmp_path):
    phantom(8.0)[0].save(tmp_path / "p.nii.gz")
    (tmp_path / "scans.csv").write_text("image\np.nii.gz\n")
    return dataclasses.replace(
        TINY, name="vit-wild-lesions", corpus=str(tmp_path / "scans.csv"), task="lesions"
    )


def call(monkeypatch, *args) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, args)])
    gpu.main()


def test_a_checkpoint_comes_back_from_its_parts(run, tmp_path, monkeypatch):
    """Half as large, in parts, with the same weights to fp16."""
    monkeypatch.setattr(gpu, "PART", 20_000)
    pretrain.pretrain(dataclasses.replace(run, steps=2), tmp_path / "runs" / "one")
    state = checkpoints.read(tmp_path / "runs" / "one" / checkpoints.NEWEST)
    (tmp_path / "out").mkdir()
    parts = gpu.pack(
        state, tmp_path / "out" / f"{run.name}.checkpoint", tmp_path / "runs" / "one" / "log.jsonl"
    )
    assert len(parts) > 1 and all(part.stat().st_size <= 20_000 for part in parts)
    gpu.unpack(tmp_path / "out", tmp_path / "home")
    folder = tmp_path / "home" / run.name
    again = checkpoints.read(folder / checkpoints.NEWEST)
    assert again["step"] == 2 and not again["opt"]["state"]
    for key, value in state["task"].items():
        torch.testing.assert_close(again["task"][key].float(), value.float(), atol=2e-3, rtol=1e-3)
    kept = checkpoints.load_run(folder)
    assert (kept.name, kept.steps, kept.task, kept.corpus) == (run.name, 2, "lesions", run.corpus)
    with pytest.raises(SystemExit, match="move it away"):
        gpu.unpack(tmp_path / "out", tmp_path / "home")


@pytest.mark.slow
def test_a_rehearsal_checks_trains_and_goes_on_after_a_failure(run, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "find_run", lambda name: run if name == "good" else find_run(name))
    monkeypatch.setattr(
        gpu, "COMMANDS", {"quick": ["-c", "print('checked')"], "slow": ["-c", "while True: pass"]}
    )
    monkeypatch.setattr(gpu, "command", command_within(gpu.command, 3.0))
    asked = "--device cpu --steps 3 --batch 4 --minutes 1 --parts quick slow --runs no_such_run good=2"
    call(monkeypatch, *asked.split(), "--out", tmp_path / "out", "--work", tmp_path / "work")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["quick"]["exit"] == 0 and (tmp_path / "out" / "quick.txt").read_text() == "checked\n"
    assert summary["slow"]["exit"] == "stopped: too slow"
    assert "unknown run" in summary["no_such_run"]["failed"]
    assert summary["good"]["steps"] == 3 and summary["good"]["batch"] == 4
    assert summary["good"]["lr"] == pytest.approx(run.lr * 2**0.5)
    assert (tmp_path / "out" / f"{run.name}.checkpoint.00").is_file()


def command_within(command, seconds):
    return lambda name, log, device, *, timeout: command(name, log, device, timeout=seconds)


def test_without_a_gpu_it_says_how_to_rehearse(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        call(monkeypatch, "--minutes", 1)
    assert "--device cpu --steps 3" in capsys.readouterr().err


def test_a_card_names_the_settings_that_differ_from_the_recipe():
    recipe = find_run("vit_wild_lesions")
    assert command_of(recipe) == "python -m training.pretrain vit_wild_lesions"
    large = dataclasses.replace(recipe, batch=64, steps=9000, workers=9)
    assert command_of(large) == "python -m training.pretrain vit_wild_lesions --set batch=64 steps=9000"


def test_a_run_of_minutes_ends_by_the_clock_with_its_schedule_at_its_end(run, tmp_path, monkeypatch):
    """Its checkpoint is one of a finished run of as many steps as were made."""

    class Seconds(pretrain.Clock):
        """A second a step."""

        def tick(self) -> None:
            self.seconds += 1

    monkeypatch.setattr(pretrain, "Clock", Seconds)
    bounded = dataclasses.replace(run, steps=10**6, minutes=0.2, lr=1e-3, warmup=0.1, resident=True)
    pretrain.pretrain(bounded, tmp_path / "out")
    state = checkpoints.read(tmp_path / "out" / checkpoints.NEWEST)
    assert state["step"] == 12
    ended = dataclasses.replace(bounded, steps=12, minutes=0.0)
    assert state["run"] == checkpoints.settings(ended)
    rates = [row["lr"] for row in log.read(tmp_path / "out" / "log.jsonl")]
    assert (
        rates[0] < rates[2] and rates[2:] == sorted(rates[2:], reverse=True) and rates[-1] < 0.05 * max(rates)
    )
    assert ctssl.load(tmp_path / "out").channels
    (tmp_path / "out" / "config.json").unlink()  # killed before the encoder was written
    pretrain.pretrain(bounded, tmp_path / "out")
    assert ctssl.load(tmp_path / "out").channels
    assert checkpoints.read(tmp_path / "out" / checkpoints.NEWEST)["step"] == 12
    with pytest.raises(SystemExit, match="other settings"):
        pretrain.pretrain(dataclasses.replace(bounded, minutes=0.3), tmp_path / "out")


def test_a_run_goes_on_from_what_another_left_in_the_work_folder_and_takes_its_head(
    run, tmp_path, monkeypatch
):
    first = dataclasses.replace(run, steps=1, name="first")
    pretrain.pretrain(first, tmp_path / "work" / "first")
    then = dataclasses.replace(run, steps=1, name="then", init="runs/first", lr=0.0)
    seen = []
    monkeypatch.setattr(gpu.pretrain, "pretrain", lambda one, out: seen.append(one) or pretrain_now(one, out))
    args = SimpleNamespace(batch=0, device="cpu", work=tmp_path / "work", out=tmp_path / "out", steps=1)
    args.out.mkdir()
    gpu.train(then, args, seconds=1.0)  # type: ignore[arg-type]
    assert seen[0].init == str(tmp_path / "work" / "first")
    one, two = (ctssl.load_segmenter(tmp_path / "work" / name).state_dict() for name in ("first", "then"))
    for key, value in one.items():
        torch.testing.assert_close(two[key], value, msg=key)


pretrain_now = pretrain.pretrain


def test_a_checkpoint_from_before_a_setting_existed_goes_on(run, tmp_path):
    pretrain.pretrain(run, tmp_path / "out", stop_after=2)
    path = tmp_path / "out" / checkpoints.NEWEST
    state = checkpoints.read(path)
    old = {key: value for key, value in json.loads(state["run"]).items() if key != "minutes"}
    checkpoints.write(path, {**state, "run": json.dumps(old)})
    found = checkpoints.load_latest(tmp_path / "out", run)
    assert found is not None and found["step"] == 2
