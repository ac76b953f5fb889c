"""Long runs: stopped by a signal, alone in their folder, tidy after one that was killed."""

import dataclasses
import itertools
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch

import ctssl
from ctssl.cli import main
from ctssl.files.running import Stopped, clear_parts, only_process, stop_signals
from ctssl.finetuning import crops
from ctssl.phantom import phantom
from tests.support.fork import SERVER
from tests.support.tiny import QUICK, QUICK_FLAGS, SMALL
from tests.support.training import ROOT, TINY
from training import log, pretrain


def at_call(number: int, function, send=signal.SIGTERM):
    """The function, which sends a signal to this process in its call `number`, from 0."""
    calls = itertools.count()

    def wrapped(*args, **kwargs):
        if next(calls) == number:
            os.kill(os.getpid(), send)
        return function(*args, **kwargs)

    return wrapped


@pytest.fixture(autouse=True)
def interruptible():
    """As in a terminal: a process in the background may have been started with SIGINT ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_acts(number, capfd):
    before = signal.getsignal(number)
    with stop_signals() as asked:
        os.kill(os.getpid(), number)
        assert asked == [number] and "once more stops at once" in capfd.readouterr().err
        assert signal.getsignal(number) == before
    assert signal.getsignal(number) == before


def test_what_is_ignored_stays_ignored_and_a_thread_takes_no_signals():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stop_signals() as asked:
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)

    def inside():
        with stop_signals() as other:
            asked.extend(other)

    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert asked == []


def hold(folder):
    with only_process(folder):
        (folder / "held").touch()
        time.sleep(60)


def held_by_another(folder):
    process = SERVER.Process(target=hold, args=(folder,))
    process.start()
    while not (folder / "held").exists():
        time.sleep(0.01)
    return process


@pytest.mark.slow
def test_a_folder_is_for_one_process_until_that_has_ended(tmp_path):
    other = held_by_another(tmp_path / "out")
    try:
        with pytest.raises(FileExistsError, match=f"process {other.pid} is at work in .*wait"):
            only_process(tmp_path / "out").__enter__()
    finally:
        other.kill()
        other.join()
    with only_process(tmp_path / "out"):
        assert (tmp_path / "out" / ".lock").read_text() == f"{os.getpid()}\n"


@pytest.mark.slow
def test_two_trainings_with_one_out(tmp_path, capsys):
    other = held_by_another(tmp_path / "out" / ".unfinished")
    try:
        assert main(["finetune", str(tmp_path), "--out", str(tmp_path / "out"), "--model", "x"]) == 2
        assert f"process {other.pid} is at work" in capsys.readouterr().err
    finally:
        other.kill()
        other.join()


def test_only_what_a_dead_process_left_is_removed(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    for number in (dead.pid, os.getpid(), os.getppid()):
        (tmp_path / f".part-{number}").mkdir()
        (tmp_path / f".part-{number}" / "half").touch()
        (tmp_path / f".part-{number}-state.json").touch()
        (tmp_path / f".part{number}-checkpoint").touch()
    (tmp_path / ".part-of-the-user").touch()
    clear_parts(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {
        f".part-{os.getppid()}",
        f".part-{os.getppid()}-state.json",
        f".part{os.getppid()}-checkpoint",
        ".part-of-the-user",
    }


@pytest.mark.slow
@pytest.mark.parametrize("minutes", [None, 60.0])
def test_a_finetuning_that_is_asked_to_stop_keeps_its_last_step(
    labelled, tiny, tmp_path, monkeypatch, minutes
):
    """After the second step of `--steps`, and of `--minutes`, where the number of steps is not known yet."""
    settings = dataclasses.replace(QUICK, save_minutes=60, minutes=minutes)

    def train(out):
        encoder = ctssl.Swin(**tiny.config)
        encoder.load_state_dict(tiny.state_dict())
        return ctssl.finetune(labelled, model=encoder, out=out, settings=settings, progress=False)

    draw = crops.draw
    monkeypatch.setattr(crops, "draw", at_call(1, draw))
    left = (
        tmp_path
        / "m"
        / f".part-{subprocess.run(['sh', '-c', 'echo $$'], capture_output=True).stdout.decode().strip()}"
    )
    left.mkdir(parents=True)
    with pytest.raises(Stopped, match="stopped after step 2 of .* same command goes on") as caught:
        train(tmp_path / "m")
    assert caught.value.code == 143 and not left.exists()
    assert (tmp_path / "m" / ".unfinished" / "state-2.safetensors").exists()
    if minutes:  # it goes on with a number of steps, which takes an hour
        return
    seen = []
    monkeypatch.setattr(crops, "draw", lambda *a, **k: (seen.append(a[2]), draw(*a, **k))[1])
    train(tmp_path / "m")
    assert seen == [2, 3]
    train(tmp_path / "whole")
    one, two = (ctssl.load_segmenter(tmp_path / name).state_dict() for name in ("whole", "m"))
    assert all(torch.equal(value, two[key]) for key, value in one.items())


@pytest.mark.slow
def test_the_command_says_how_to_go_on(labelled, tiny_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(crops, "draw", at_call(0, crops.draw, signal.SIGINT))
    command = ["finetune", str(labelled), "--out", str(tmp_path / "m"), "--model", str(tiny_folder), "--json"]
    assert main([*command, *QUICK_FLAGS]) == 130
    said = capsys.readouterr().err
    assert "stopped after step 1 of 3; the state is kept" in said and "Traceback" not in said
    assert main([*command, *QUICK_FLAGS, "--resume"]) == 0


def test_a_pretraining_that_is_asked_to_stop_goes_on_exactly(phantoms, monkeypatch):
    run = dataclasses.replace(TINY, save_minutes=60.0, steps=3)
    monkeypatch.setattr(pretrain, "descend", at_call(1, pretrain.descend))
    with pytest.raises(Stopped, match="stopped after step 2 of 3"):
        pretrain.pretrain(run, phantoms)
    resumed = pretrain.pretrain(run, phantoms)
    whole = pretrain.pretrain(run, phantoms.with_name("whole"))
    other = resumed.state_dict()
    assert all(torch.equal(value, other[key]) for key, value in whole.state_dict().items())


@pytest.mark.slow
def test_ctrl_c_reaches_the_workers_too_and_harms_nothing(tmp_path):
    """As in a terminal: to the whole group of processes, while two workers draw samples."""
    phantom(5.0)[0].save(tmp_path / "phantom.nii.gz")
    (tmp_path / "phantom.csv").write_text("image\nphantom.nii.gz\n")
    out = tmp_path / "run" / "out"
    sizes = ["crop=32", "batch=2", "steps=100000", "save_minutes=60.0", "workers=2"]
    command = [sys.executable, "-m", "training.pretrain", "--data", tmp_path / "phantom.csv", "--task", "mim"]
    command += ["--model", "swin", "--out", out, "--set", *sizes, f"encoder_args={SMALL['swin']}"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while process.poll() is None and (
        not (out / "log.jsonl").exists() or len(log.read(out / "log.jsonl")) < 3
    ):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said[-3000:]
    assert "the same command goes on" in said and "Traceback" not in said
    assert list(out.glob("checkpoint*"))
