"""Every example runs, as a user would run it, and does what it says."""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import ctssl
from tests.support import fork

FOLDER = Path(__file__).parent.parent / "examples"


def run(name: str, *args) -> str:
    done = fork.run(FOLDER / name, *args)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.slow
def test_embed():
    """With its imports, as a user starts it; the others find them made."""
    done = subprocess.run(
        [sys.executable, FOLDER / "embed.py"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(FOLDER.parent)},
    )
    out = done.stdout
    assert done.returncode == 0, done.stderr[-3000:]
    assert (
        "phantom: (144,) features" in out and "stride 8: (1, 144, 12, 12, 12)" in out and "last block" in out
    )


@pytest.mark.slow
def test_finetune_then_segment(labelled, tmp_path):
    assert "the segmenter is in" in run("finetune_your_tumours.py", labelled, tmp_path / "model", 2)
    scan = labelled / "images" / "case0.nii.gz"
    out = run("segment_a_scan.py", scan, tmp_path / "model", tmp_path / "mask.nii.gz", tmp_path / "look.png")
    assert "ml" in out and (tmp_path / "look.png").read_bytes().startswith(b"\x89PNG")
    assert ctssl.read(tmp_path / "mask.nii.gz").shape == ctssl.read(scan).shape


@pytest.mark.slow
def test_a_new_pretext_learns():
    losses = runpy.run_path(str(FOLDER / "new_pretext.py"))["main"]("30")
    assert sum(losses[-8:]) < sum(losses[:8])


@pytest.mark.slow
def test_import_a_checkpoint():
    out = run("import_a_checkpoint.py")
    assert (
        "monai-swinunetr: {" in out
        and "features of phantom: (192,) and (192,)" in out
        and "CKA of the last blocks" in out
    )


@pytest.mark.slow
def test_robustness_of_a_tool(tmp_path):
    out = run("robustness.py", tmp_path)
    assert (
        "masks, thickness: DSC 0." in out
        and "masks, dose: DSC 0." in out
        and "CKA clean against thick" in out
    )
    assert {"report.md", "curves.png", "overlays"} <= {p.name for p in (tmp_path / "report").iterdir()}
    assert (tmp_path / "cka.png").read_bytes().startswith(b"\x89PNG")
    assert run("robustness.py", tmp_path) == out  # the tool's masks are the same, so is the report


@pytest.mark.slow
def test_robustness_of_a_model(labelled, tmp_path):
    settings = ctssl.Settings(steps=2, batch=1, crop=32)
    model = ctssl.finetune(
        labelled, model="swin-wild-mim", out=tmp_path / "mine", settings=settings, progress=False
    ).folder
    out = run("robustness.py", tmp_path / "out", labelled, model)
    assert (
        "mine, thickness: DSC" in out and "masks, thickness: DSC" in out and "CKA clean against thick" in out
    )
    assert "One model against another" in (tmp_path / "out" / "report" / "report.md").read_text()


def test_every_example_is_run_here():
    here = Path(__file__).read_text()
    assert all(f'"{path.name}"' in here for path in FOLDER.glob("*.py"))
