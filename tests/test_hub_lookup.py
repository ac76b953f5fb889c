"""From a published model to a loaded one, through the real client: a mirror served by olah, and everything that goes wrong.

`CTSSL_OLAH` is the path of an `olah-cli`; it lives in a virtual environment of its own, since it pins other versions.
"""

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from ctssl import hub
from ctssl.zoo import MODELS
from tests.support.child import NAME, TAG, found, python, refused
from tests.support.hub_double import breaking
from training.release.publish import git, main

REPO = f"org/{NAME}"


FEATURES = """import sys, ctssl, torch; m = ctssl.load(sys.argv[1], revision=sys.argv[2])
x = torch.linspace(0, 1, 64**3).reshape(1, 1, 64, 64, 64); torch.save([f.clone() for f in m(x)], sys.argv[3])"""


@pytest.fixture(scope="module")
def mirror(tmp_path_factory):
    """The folder `models`, the commit of `org/vit-wild-mim` in it, and another one in which somebody swapped the weights."""
    folder = tmp_path_factory.mktemp("mirror") / "models"
    main([NAME, "--org", "org", "--mirror", str(folder)])
    repo = folder / REPO
    good = git(repo, "rev-parse", "HEAD")
    shutil.copy(hub.bundled() / "vit-wild-smit" / "model.safetensors", repo)
    git(repo, "commit", "--quiet", "--all", "--message", "swapped")
    swapped = git(repo, "rev-parse", "HEAD")
    git(repo, "reset", "--quiet", "--hard", good)
    git(repo, "branch", "other", swapped)
    return folder, good, swapped


@pytest.fixture(scope="module")
def olah(mirror, tmp_path_factory):
    """The address of an olah that serves the mirror."""
    command = os.environ.get("CTSSL_OLAH")
    if not command:
        pytest.skip(
            "CTSSL_OLAH is not set: python -m venv .ci-olah && .ci-olah/bin/pip install olah, "
            "then CTSSL_OLAH=.ci-olah/bin/olah-cli"
        )
    assert Path(command).is_file(), f"CTSSL_OLAH={command} is no file"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("olah")
    here = f"127.0.0.1:{port}"
    settings = {
        "host": "127.0.0.1",
        "port": port,
        "repos-path": "./repos",
        "hf-scheme": "https",
        "hf-netloc": "localhost:1",
        "hf-lfs-netloc": "localhost:1",
        "mirror-scheme": "http",
        "mirror-netloc": here,
        "mirror-lfs-netloc": here,
        "mirrors-path": [str(mirror[0].parent)],
    }
    rows = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    (folder / "conf.toml").write_text(f"[basic]\n{rows}\n[accessibility]\noffline = true\n")
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [Path(command).absolute(), "-c", "conf.toml"], cwd=folder, stdout=log, stderr=log
        )
    try:
        for _ in range(600):
            assert server.poll() is None, (folder / "log").read_text()[-2000:]
            try:
                urllib.request.urlopen(f"http://{here}/api/models/{REPO}/revision/main", timeout=5).read()
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield f"http://{here}"
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.slow
def test_what_is_published_loads_from_a_mirror_with_its_features(olah, mirror, tmp_path):
    import torch

    done = python(
        FEATURES, REPO, mirror[1], tmp_path / "maps.pt", HF_ENDPOINT=olah, HF_HOME=tmp_path / "home"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    import ctssl

    expected = ctssl.load(NAME, offline=True)(torch.linspace(0, 1, 64**3).reshape(1, 1, 64, 64, 64))
    for one, two in zip(torch.load(tmp_path / "maps.pt", weights_only=True), expected, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    cached = found(
        REPO, mirror[1], HF_HUB_OFFLINE=1, HF_HOME=tmp_path / "home"
    )  # and from now on without a network
    assert cached.name == mirror[1] and str(cached).startswith(str(tmp_path / "home"))


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["v9.9.9", "0" * 40])
def test_a_revision_that_does_not_exist_is_named(olah, revision, tmp_path):
    said = refused(REPO, revision, HF_ENDPOINT=olah, HF_HOME=tmp_path / "home")
    assert said.startswith("FileNotFoundError") and f"{REPO} on {olah} has no revision '{revision}'" in said
    assert "omit it for the newest" in said


@pytest.mark.slow
def test_a_repository_that_does_not_exist_is_named(olah, tmp_path):
    said = refused("org/nothing", HF_ENDPOINT=olah, HF_HOME=tmp_path / "home")
    assert (
        said.startswith("FileNotFoundError")
        and "no repository org/nothing" in said
        and "hf auth login" in said
    )


@pytest.mark.slow
def test_a_server_that_goes_away_half_way_leaves_nothing_and_the_next_attempt_succeeds(
    olah, mirror, tmp_path
):
    proxy, home = breaking(olah), tmp_path / "home"
    try:
        said = refused(REPO, mirror[1], HF_ENDPOINT=proxy.url, HF_HOME=home)
    finally:
        proxy.close()
    assert (
        proxy.http.broken
        and said.startswith("ConnectionError")
        and f"cannot download {REPO} from {proxy.url}" in said
        and "try again" in said
    )
    assert not list(home.rglob("model.safetensors")) and not list(home.rglob("*.incomplete"))
    said = refused(REPO, mirror[1], HF_ENDPOINT=proxy.url, HF_HOME=home, HF_HUB_OFFLINE=1)
    assert "not in the local cache" in said  # half a model is none
    assert hub.open_folder(found(REPO, mirror[1], HF_ENDPOINT=olah, HF_HOME=home), sha256=MODELS[NAME].sha256)


@pytest.mark.slow
def test_a_damaged_file_in_the_cache_is_found_and_the_cure_works(olah, mirror, tmp_path):
    at = dict(HF_ENDPOINT=olah, HF_HOME=tmp_path / "home")
    weights = (found(REPO, mirror[1], **at) / "model.safetensors").resolve()
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 255
    weights.write_bytes(content)
    said = refused(REPO, mirror[1], **at)
    assert said.startswith("ValueError") and "is damaged or was changed" in said
    (folder,) = re.findall(r"remove (\S+) and load the model again", said)
    shutil.rmtree(folder)
    assert hub.open_folder(found(REPO, mirror[1], **at), sha256=MODELS[NAME].sha256)


@pytest.mark.slow
def test_swapped_weights_in_the_repository_are_found(olah, mirror, tmp_path):
    at = dict(HF_ENDPOINT=olah, HF_HOME=tmp_path / "home")
    said = refused(REPO, "other", **at)
    assert (
        said.startswith("ValueError")
        and "config.json says" in said
        and "use another revision, or ask its owner" in said
    )
    pinned = f"""import dataclasses, pathlib; from ctssl import hub, zoo; import ctssl.hub.lookup
def place(commit): zoo.MODELS[{NAME!r}] = dataclasses.replace(zoo.MODELS[{NAME!r}], repo={REPO!r}, revision=commit)
hub.lookup.bundled = lambda: pathlib.Path("nowhere"); place({mirror[1]!r}); print(hub.find({NAME!r})); place({mirror[2]!r})
hub.find({NAME!r})"""
    done = python(
        pinned, **at
    )  # a name of the table: its sha256 is in the table, whatever the repository says
    assert (
        done.stdout.strip().endswith(mirror[1]) and "the published model says" in done.stderr.splitlines()[-1]
    )


@pytest.mark.slow
def test_the_mirror_is_one_commit_with_a_tag_and_is_left_when_it_is_there(mirror, capsys, tmp_path):
    folder, good, _ = mirror
    assert git(folder / REPO, "rev-list", "--count", "main") == "1" and git(folder / REPO, "tag") == TAG
    capsys.readouterr()
    main([NAME, "--org", "org", "--mirror", str(folder)])
    assert f'ctssl.load("{REPO}", revision="{good}")' in capsys.readouterr().out
    with pytest.raises(SystemExit, match="is not this model with the tag v2"):
        main([NAME, "--org", "org", "--mirror", str(folder), "--tag", "v2"])
    (tmp_path / "org" / NAME).mkdir(parents=True)
    (tmp_path / "org" / NAME / "notes.txt").write_text("precious")
    with pytest.raises(SystemExit, match="it was not changed"):
        main([NAME, "--org", "org", "--mirror", str(tmp_path)])
    assert (tmp_path / "org" / NAME / "notes.txt").read_text() == "precious"
