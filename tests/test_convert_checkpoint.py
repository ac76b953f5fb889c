"""Pickles from strangers: read without running what they hold, or refused."""

import os
import pickle
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from ctssl.convert import checkpoint as pickles
from ctssl.convert.checkpoint import read_checkpoint
from ctssl.convert.importing import import_checkpoint


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


class Evil:
    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.slow
def test_a_pickle_that_would_run_code_is_refused_and_does_not(tmp_path):
    content = {"state_dict": {"patch_embed.proj.weight": torch.ones(2)}, "extra": Evil(tmp_path / "created")}
    torch.save(content, tmp_path / "evil.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Evil(tmp_path / "created")))
    for name in ("evil.pt", "plain.pt"):
        with pytest.raises(ValueError, match=r"it asks for \w+\.system|is damaged or not a PyTorch"):
            import_checkpoint(tmp_path / name, out=tmp_path / "out")
    assert not (tmp_path / "created").exists() and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_what_trainers_save_beside_the_weights_does_not_hinder(tmp_path):
    import argparse

    import numpy as np

    weights = {"a.weight": torch.ones(2), "b": torch.ones(3).half()}
    extra = {"args": argparse.Namespace(lr=0.1), "best_acc": np.float64(0.5), "epoch": 3, "names": ["x"]}
    torch.save({"state_dict": weights, **extra}, tmp_path / "file.pt")
    found = read_checkpoint(tmp_path / "file.pt").tensors
    assert (
        set(found) == {"state_dict/a.weight", "state_dict/b"} and found["state_dict/b"].dtype == torch.float16
    )


def bomb(path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
        archive.writestr("archive/data/0", b"\0" * (64 << 20))


def write_zip(path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/array.npy", b"0")


@pytest.mark.slow
@pytest.mark.parametrize(
    "write, words",
    [
        (bomb, "unpacks to more than its size"),
        (write_zip, "no data.pkl"),
        (lambda p: torch.save({"w": torch.zeros(1).expand(10**10)}, p), r"declare 40000000000 bytes"),
        (lambda p: torch.jit.script(torch.nn.Linear(2, 2)).save(str(p)), "TorchScript"),
        (lambda p: p.write_bytes(b"\x1f\x8b" + b"0" * 99), "gzip"),
        (lambda p: p.write_text("  <!DOCTYPE html>"), "a web page"),
        (lambda p: p.write_bytes(b""), "not a PyTorch checkpoint"),
        (lambda p: p.write_bytes(b"\x80\x02" + bytes(range(256))), "damaged or not a PyTorch checkpoint"),
        (lambda p: torch.save({"w": torch.ones(2).to_sparse()}, p), "sparse"),
        (
            lambda p: p.write_bytes((200).to_bytes(8, "little") + b'{"a":' + b"x" * 300),
            "not a complete safetensors",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_files_that_are_no_checkpoint_are_refused_in_words(tmp_path, write, words):
    write(tmp_path / "file.pt")
    with pytest.raises(ValueError, match=words):
        read_checkpoint(tmp_path / "file.pt")


@pytest.mark.slow
def test_truncated_files_are_refused(tmp_path):
    torch.save({"w": torch.rand(1000)}, tmp_path / "file.pt")
    torch.save({"w": torch.rand(1000)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    save_file({"w": torch.rand(1000)}, tmp_path / "file.safetensors")
    for name in ("file.pt", "old.pt", "file.safetensors"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match="not a complete|damaged or not"):
            read_checkpoint(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="give a checkpoint"):
        read_checkpoint(tmp_path / "none.pt")


@pytest.mark.slow
def test_time_and_memory_are_limited(tmp_path, monkeypatch):
    torch.save({"w": torch.rand(16 << 20)}, tmp_path / "file.pt")  # 64 MiB
    with pytest.raises(ValueError, match=r"not open after 0\.05 seconds"):
        read_checkpoint(tmp_path / "file.pt", seconds=0.05)
    if os.path.exists("/proc/self/statm"):
        monkeypatch.setattr(pickles, "SPARE", -3 * (tmp_path / "file.pt").stat().st_size + (8 << 20))
        with pytest.raises(ValueError, match="more memory|lack of memory|cannot be read"):
            read_checkpoint(tmp_path / "file.pt")
