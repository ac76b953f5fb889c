"""What the tests share. Data of real scans is read from CTSSL_DATA; tests that need it skip without."""

import os
from pathlib import Path

os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # before torch; on tiny tensors threads wait longer than they work

import numpy as np
import pytest
import torch

import ctssl
from ctssl.encoders import ENCODERS
from ctssl.phantom import phantom
from ctssl.volume.volume import Volume
from tests.support.tiny import SMALL, tiny_swin

MARKS = {"data": "data", "olah": "network", "double": "network"}
"""The mark of every test that uses a fixture, itself or through another one."""


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    for item in items:
        for name in MARKS.keys() & set(item.fixturenames):
            item.add_marker(MARKS[name])
        rehearsed = "CTSSL_TEST_DEVICE" in os.environ
        if item.get_closest_marker("gpu") and not (torch.cuda.is_available() or rehearsed):
            item.add_marker(pytest.mark.skip(reason="needs CUDA"))


@pytest.fixture(autouse=True)
def _pictures_without_layout(request, monkeypatch):
    """Constrained layout takes most of the time of a picture, and a fine-tuning draws four; slow tests have it."""
    if not request.node.get_closest_marker("slow"):
        monkeypatch.setattr("matplotlib.layout_engine.ConstrainedLayoutEngine.execute", lambda *_: None)


@pytest.fixture(scope="session")
def data() -> Path:
    folder = os.environ.get("CTSSL_DATA")
    if not folder:
        pytest.skip("CTSSL_DATA is not set: this test reads real scans")
    return Path(folder)


@pytest.fixture(params=sorted(ENCODERS))
def encoder(request):
    torch.manual_seed(0)
    return ENCODERS[request.param](**SMALL[request.param]).eval()


@pytest.fixture(scope="session")
def ball() -> tuple[Volume, Volume]:
    """A scan of 72 x 60 x 48 mm in HU with a bright ball, and the ball's mask. No symmetry."""
    spacing = (2.0, 2.0, 3.0)
    x, y, z = np.meshgrid(
        *[np.arange(n) * s for n, s in zip((36, 30, 16), spacing, strict=True)], indexing="ij"
    )
    inside = (x - 40) ** 2 + (y - 24) ** 2 + (z - 20) ** 2 < 12**2
    body = (x - 36) ** 2 / 34**2 + (y - 30) ** 2 / 28**2 < 1
    hu = np.where(inside, 200.0, np.where(body, 20.0, -1000.0)).astype(np.float32)
    affine = np.diag([*spacing, 1.0])
    return Volume(hu, affine, "ball"), Volume(inside.astype(np.uint8), affine, "ball mask")


@pytest.fixture
def labelled(tmp_path, ball) -> Path:
    """Three labelled scans on disk, `images/` and `labels/`."""
    scan, mask = ball
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for i in range(3):
        noise = np.random.default_rng(i).normal(0, 5, scan.shape).astype(np.float32)
        Volume(scan.array + noise, scan.affine).save(tmp_path / "data" / "images" / f"case{i}.nii.gz")
        mask.save(tmp_path / "data" / "labels" / f"case{i}.nii.gz")
    return tmp_path / "data"


@pytest.fixture
def tiny() -> ctssl.Swin:
    return tiny_swin()


@pytest.fixture
def tiny_folder(tmp_path) -> Path:
    return tiny_swin().save_pretrained(tmp_path / "tiny")


@pytest.fixture(scope="session")
def tiny_segmenter(tmp_path_factory) -> Path:
    """The folder of a segmenter that learned nothing; not to be changed."""
    net = ctssl.segmenter(tiny_swin(), head="linear", window=32)
    return net.save_pretrained(tmp_path_factory.mktemp("models") / "model")


@pytest.fixture
def net(tiny_folder):
    return ctssl.segmenter(ctssl.load(tiny_folder), head="linear")


@pytest.fixture
def scans(tmp_path, ball) -> Path:
    (tmp_path / "scans").mkdir()
    for name in "abc":
        ball[0].save(tmp_path / "scans" / f"{name}.nii.gz")
    return tmp_path / "scans"


@pytest.fixture(scope="session")
def chest() -> Volume:
    whole = phantom(4.0)[0]
    return Volume(np.ascontiguousarray(whole.array[:, :, 18:42]), whole.affine, "chest")


@pytest.fixture
def phantoms(tmp_path, monkeypatch) -> Path:
    """Two phantoms in place of a corpus; the folder for a run."""
    from training import pretrain
    from training.data import manifest, seen
    from training.release import encoder as export

    paths = [phantom(5.0, seed=i)[0].save(tmp_path / f"phantom{i}.nii.gz") for i in range(2)]
    scans = [manifest.Scan(path, path.name) for path in paths]
    for module in (pretrain, export, seen):
        monkeypatch.setattr(module, "find_scans", lambda name: scans)
    monkeypatch.setattr(seen, "data_folder", lambda: tmp_path)
    monkeypatch.setattr(
        export,
        "provenance",
        lambda name: [dict(id="p", collection="phantom", source="", licence="public domain", body_part="")],
    )
    return tmp_path / "runs" / "tiny"
