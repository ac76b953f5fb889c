"""The wheel, as somebody installs it: built here, unpacked elsewhere, without the repository."""

import os
import subprocess
import sys
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ctssl.zoo import MODELS

ROOT = Path(__file__).parent.parent
LARGEST = 80e6  # bytes
SCRIPT = """
import sys, ctssl, pathlib
here = pathlib.Path(ctssl.__file__).parent
assert here.parent == pathlib.Path(sys.argv[1]), here
names = [name for name in ctssl.list_models() if ctssl.info(name).in_package]
for name in names:
    model = ctssl.load(name, offline=True) if ctssl.info(name).kind == "encoder" else ctssl.load_segmenter(name, offline=True)
    assert model.spec.name == name
print(len(names))
"""


def test_only_free_licences_are_in_what_is_published():
    tomllib = pytest.importorskip("tomllib")  # of Python 3.11
    built = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]
    assert not any("NC" in spec.licence for spec in MODELS.values() if spec.in_package)
    for folder in (path for path in (ROOT / "model_cards").iterdir() if path.is_dir()):
        left_out = any(
            fnmatch(f"model_cards/{folder.name}", pattern) for pattern in built["sdist"]["exclude"]
        )
        assert left_out != (folder.name in MODELS and MODELS[folder.name].in_package), folder.name


@pytest.mark.slow
def test_every_model_loads_from_the_wheel(tmp_path):
    pytest.importorskip("hatchling")
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        str(ROOT),
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    (wheel,) = tmp_path.glob("ctssl-*.whl")
    assert wheel.stat().st_size < LARGEST
    home, inside = tmp_path / "installed", {name for name, spec in MODELS.items() if spec.in_package}
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(home)
    assert {path.name for path in (home / "ctssl" / "_models").iterdir()} == inside
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "CTSSL_MODELS")}
    run = [sys.executable, "-c", SCRIPT, str(home)]
    done = subprocess.run(run, capture_output=True, text=True, cwd=home, env=env | {"PYTHONPATH": str(home)})
    assert done.returncode == 0 and done.stdout.strip() == str(len(inside)), done.stderr[-2000:]
