"""A full disk leaves no half file."""

import errno
import os
from pathlib import Path

import nibabel
import pytest
import torch

import ctssl
from ctssl.files import atomic as writing
from ctssl.files.weights import write_weights
from ctssl.finetuning.settings import Settings
from ctssl.inference.folder import segment_folder
from tests.support import kill
from tests.support.folders import files


@pytest.fixture
def full(monkeypatch):
    """After `full(n)` more files the disk is full: half of the next one can be written."""
    left = [10**9]

    def half(path: Path, content: bytes) -> None:
        if left[0] > 0:
            left[0] -= 1
            return
        with open(path, "wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    write_bytes, save = Path.write_bytes, nibabel.save

    def written(self: Path, content: bytes) -> int:
        half(self, bytes(content))
        return write_bytes(self, content)

    def saved(image, path) -> None:
        half(Path(path), b"half a scan")
        save(image, path)

    monkeypatch.setattr(Path, "write_bytes", written)
    monkeypatch.setattr(nibabel, "save", saved)
    return lambda count: left.__setitem__(0, count)


@pytest.mark.slow
@pytest.mark.parametrize("count", range(7))
def test_a_full_disk_stops_a_folder_of_scans_and_leaves_whole_masks(net, scans, tmp_path, full, count):
    full(count)
    with pytest.raises(OSError, match=r"the disk is full: .* was not written; free some space") as raised:
        segment_folder(net, {path.stem: path for path in sorted(scans.iterdir())}, tmp_path / "out")
    assert raised.value.errno == errno.ENOSPC
    there = (0, 1, 2, 2, 3, 4, 4)[count]  # the record of a scan is written twice: begun, whole
    assert len(kill.whole(tmp_path / "out")) == there == len(files(tmp_path / "out"))
    full(10**9)
    assert (
        segment_folder(
            net, {path.stem: path for path in sorted(scans.iterdir())}, tmp_path / "out", resume=True
        )
        == {}
    )
    assert len(files(tmp_path / "out")) == 6


@pytest.mark.slow
@pytest.mark.parametrize("count", range(7))
def test_a_full_disk_leaves_no_half_model_and_the_training_goes_on(
    labelled, tiny_folder, tmp_path, full, count
):
    """Wherever it happens: the state of the training, the weights, the report, the pictures."""
    settings = Settings(steps=2, batch=1, crop=16, save_minutes=0)
    how = dict(model=tiny_folder, head="linear", hold_out=["case2"], settings=settings, progress=False)
    full(count)
    with pytest.raises(OSError, match="the disk is full: "):
        ctssl.finetune(labelled, out=tmp_path / "out", **how)
    kill.whole(tmp_path / "out")
    assert not (tmp_path / "out" / "config.json").exists() and not list(tmp_path.glob(".part*"))
    full(10**9)
    ctssl.finetune(labelled, out=tmp_path / "out", **how)
    assert "config.json" in kill.whole(tmp_path / "out")


@pytest.mark.parametrize("count", range(4))
def test_a_full_disk_leaves_no_half_report(labelled, tmp_path, full, count):
    found = ctssl.evaluate(labelled / "labels", labelled / "labels", against=labelled / "labels")
    full(count)
    if count == 3:  # the picture is drawn by matplotlib
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(found), "_picture", lambda self, path: path.write_bytes(b"half a picture"))
            with pytest.raises(OSError, match="the disk is full: .*paired.png was not written"):
                found.save(tmp_path / "report")
    else:
        with pytest.raises(OSError, match="the disk is full: "):
            found.save(tmp_path / "report")
    assert len(set(files(tmp_path / "report")) - {writing.BEGUN}) == count
    full(10**9)
    found.save(tmp_path / "report", overwrite=True)
    assert len(kill.whole(tmp_path / "report")) == 4


def test_other_errors_keep_their_words_and_leave_nothing(tmp_path):
    def broken(path: Path) -> None:
        path.write_text("half")
        raise PermissionError(errno.EACCES, "not yours", str(path))

    with pytest.raises(PermissionError, match="not yours"):
        writing.write_whole(tmp_path / "a.json", broken)
    assert files(tmp_path) == []
    (tmp_path / "a.json").write_text("the old one")
    with pytest.raises(PermissionError):
        writing.write_whole(tmp_path / "a.json", broken)
    assert (tmp_path / "a.json").read_text() == "the old one"


def test_weights_that_are_being_written_have_a_name_that_is_cleared_away(tmp_path, monkeypatch):
    seen, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda *both: (seen.extend(os.listdir(tmp_path)), replace(*both)))
    write_weights(tmp_path / "a.safetensors", {"w": torch.rand(3)})
    assert seen == [f".part-{os.getpid()}-a.safetensors"] and os.listdir(tmp_path) == ["a.safetensors"]
