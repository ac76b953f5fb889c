"""Machines that are not as one would wish: without a network, with a full or read-only disk, with two processes at once."""

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ctssl import hub
from ctssl.hub import downloads
from ctssl.zoo import MODELS
from tests.support.child import FIND, NAME, environment, found, python, refused
from tests.support.hub_double import Double

CLI = "import sys; from ctssl.cli import main; sys.exit(main(sys.argv[1:]))"
REPO = "me/encoder"


@pytest.fixture(scope="module")
def double():
    server = Double()
    files = {p.name: p.read_bytes() for p in (hub.bundled() / NAME).iterdir()}
    server.repos[REPO] = {
        "private": False,
        "refs": {"main": "a" * 40, "v1": "a" * 40},
        "commits": {"a" * 40: files},
    }
    yield server
    server.close()


@pytest.fixture
def disk(tmp_path):
    """A disk of 2 MB, less than the model needs, and a function that mounts it again otherwise."""
    place = tmp_path / "disk"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small disk")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True
    ).returncode:
        pytest.skip("this system does not let root mount a disk")
    yield place, lambda how: subprocess.run(["mount", "-o", f"remount,{how}", place], check=True)
    subprocess.run(["umount", place], check=True)


@pytest.mark.slow
def test_without_a_network_it_says_so_and_what_is_there_loads(double, tmp_path):
    at = dict(HF_ENDPOINT=double.url, HF_HOME=tmp_path / "home")
    said = refused(REPO, HF_HUB_OFFLINE=1, **at)
    assert (
        said.startswith("FileNotFoundError")
        and f"{REPO} is not in the local cache" in said
        and "the network is off" in said
    )
    assert f"ctssl download {REPO} --to FOLDER" in said and "CTSSL_MODELS" in said
    here = found(REPO, "v1", **at)
    before = len(double.asked)
    assert found(REPO, "v1", HF_HUB_OFFLINE=1, **at) == here and found(REPO, "a" * 40, **at) == here
    assert len(double.asked) == before  # a pinned commit that is here asks nobody
    assert "at revision v2 is not in the local cache" in refused(REPO, "v2", HF_HUB_OFFLINE=1, **at)
    closed = dict(HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=tmp_path / "home")  # nobody listens there
    assert found(REPO, "v1", **closed) == here
    said = refused("me/other", **closed)
    assert (
        said.startswith("ConnectionError")
        and "cannot download me/other from http://127.0.0.1:9" in said
        and "HF_ENDPOINT" in said
    )


@pytest.mark.slow
def test_a_home_that_does_not_exist_is_made_or_named(double, tmp_path):
    bare = {"HF_HOME": tmp_path / "not" / "there"}
    assert found(NAME, HOME=tmp_path / "gone", **bare) == hub.bundled() / NAME
    assert (
        not (tmp_path / "not").exists() and not (tmp_path / "gone").exists()
    )  # what the package carries needs none
    assert str(found(REPO, HF_ENDPOINT=double.url, **bare)).startswith(str(tmp_path / "not" / "there"))
    assert str(found(REPO, HF_ENDPOINT=double.url, HOME=tmp_path / "gone")).startswith(str(tmp_path / "gone"))
    (tmp_path / "file").write_text("in the way")
    said = refused(REPO, HF_ENDPOINT=double.url, HF_HOME=tmp_path / "file" / "home")
    assert said.startswith("PermissionError") and "cannot write to" in said and "set HF_HOME" in said


@pytest.mark.slow
def test_a_full_disk_is_named_and_the_next_attempt_succeeds(double, disk, tmp_path):
    place, mount = disk
    at = dict(HF_ENDPOINT=double.url, HF_HOME=place / "home")
    said = refused(REPO, **at)
    assert (
        said.startswith("OSError")
        and f"the disk of {place}/home" in said
        and "is full" in said
        and "HF_HOME" in said
    )
    assert not list(place.rglob("model.safetensors")) and not list(place.rglob("*.incomplete"))
    done = python(CLI, "download", NAME, "--to", place / "models")
    assert (
        done.returncode == 1
        and f"the disk of {place / 'models'} is full" in done.stderr
        and "another --to" in done.stderr
    )
    assert list((place / "models").iterdir()) == []
    mount("size=20m")
    assert hub.open_folder(found(REPO, **at), sha256=MODELS[NAME].sha256)
    assert python(CLI, "download", NAME, "--to", place / "models").returncode == 0
    mount("ro")  # and from now on nothing can be written: no lock, no log
    assert found(REPO, "a" * 40, **at) and found(REPO, **at) and found(REPO, HF_HUB_OFFLINE=1, **at)
    assert found(NAME, CTSSL_MODELS=place / "models") == place / "models" / NAME
    said = refused(REPO, HF_ENDPOINT=double.url, HF_HOME=place / "new")
    assert (
        said.startswith("PermissionError") and "cannot write to" in said and "Read-only file system" in said
    )
    done = python(CLI, "download", NAME, "--to", place / "other")
    assert done.returncode == 1 and "cannot write to" in done.stderr and "choose another --to" in done.stderr


def test_a_disk_that_fills_up_during_a_copy_leaves_nothing(tmp_path, monkeypatch):
    def full(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfile", full)
        with pytest.raises(
            OSError, match=r"the disk of .* is full; no incomplete model was kept.*another --to"
        ):
            downloads.download(NAME, to=tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []
    assert downloads.download(NAME, to=tmp_path / "models") == tmp_path / "models" / NAME


@pytest.mark.slow
def test_processes_that_load_and_download_at_once_all_succeed(double, tmp_path):
    at = environment(HF_ENDPOINT=double.url, HF_HOME=tmp_path / "home")
    words = [[FIND, REPO]] * 3 + [[CLI, "download", REPO, "--to", tmp_path / "models"]] * 3
    running = [
        subprocess.Popen(
            [sys.executable, "-c", *map(str, w)],
            env=at,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for w in words
    ]
    for process in running:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors[-2000:]
    assert [p.name for p in (tmp_path / "models").iterdir()] == ["encoder"]
    assert hub.open_folder(tmp_path / "models" / "encoder", sha256=MODELS[NAME].sha256)


@pytest.mark.slow
def test_a_folder_for_another_machine(double, tmp_path):
    at = dict(HF_ENDPOINT=double.url, HF_HOME=tmp_path / "home")
    done = python(CLI, "download", NAME, REPO, "--to", tmp_path / "models", **at)
    assert done.returncode == 0 and f"export CTSSL_MODELS={tmp_path / 'models'}" in done.stdout, done.stderr
    for name in (NAME, "encoder"):
        folder = tmp_path / "models" / name
        assert (
            not any(path.is_symlink() for path in folder.iterdir())
            and folder.stat().st_mode & 0o777 == 0o777 & ~umask()
        )
        assert (
            found(name, CTSSL_MODELS=tmp_path / "models", HF_HUB_OFFLINE=1, HF_HOME=tmp_path / "empty")
            == folder
        )
    assert not (tmp_path / "empty").exists()
    told = python(CLI, "info", "encoder", CTSSL_MODELS=tmp_path / "models", HF_HUB_OFFLINE=1)
    assert told.returncode == 0 and "python -m training.pretrain vit_wild_mim" in told.stdout, told.stderr


def test_all_models_at_once_and_again(tmp_path, capsys):
    from ctssl.cli.main import main

    assert main(["download", "--all", "--to", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {n for n, spec in MODELS.items() if spec.in_package}
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert main(["download", "--all", "--to", str(tmp_path)]) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written  # verified, and left
    assert "came with the package" in (main(["download", NAME]), capsys.readouterr().out)[1]


def test_what_stands_in_the_way_is_never_destroyed(tmp_path, capsys):
    from ctssl.cli.main import main

    target = tmp_path / NAME
    target.mkdir()
    assert main(["download", NAME, "--to", str(tmp_path)]) == 0  # an empty folder gives way
    (target / "model.safetensors").write_bytes(b"somebody's work")
    assert main(["download", NAME, "--to", str(tmp_path)]) == 2
    assert (
        "it was not changed" in capsys.readouterr().err
        and (target / "model.safetensors").read_bytes() == b"somebody's work"
    )
    shutil.rmtree(target)
    target.write_text("a file")
    assert main(["download", NAME, "--to", str(tmp_path)]) == 2 and target.read_text() == "a file"


def test_words_that_name_no_model_are_refused(capsys, tmp_path):
    from ctssl.cli.main import main

    for words, said in (
        (["download"], "which models?"),
        (["download", "a/b", "c/d", "--revision", "v1"], "belongs to one repository"),
        (["download", "../x"], "unknown model"),
        (["download", "me/..", "--to", str(tmp_path)], "unknown model"),
        (["download", NAME, "--revision", "v1"], "no revisions"),
    ):
        assert main(words) == 2
        assert said in capsys.readouterr().err


def umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
