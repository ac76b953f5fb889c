"""Names of files: too long ones are refused before the work, and cells of tables are no formulas."""

import json
from pathlib import Path

import numpy as np
import pytest

import ctssl
from ctssl.cli import main
from ctssl.datasets.layouts import find_cases
from ctssl.files import names
from ctssl.files.names import check_path
from ctssl.files.text import csv_text
from ctssl.inference import masks, windows
from tests.support.folders import described

LONG = "x" * 245


def test_the_longest_name_that_passes_can_be_written(ball, tmp_path):
    stem = "x" * (255 - names.PART - len(".nii.gz"))
    assert ball[1].save(check_path(tmp_path / f"{stem}.nii.gz")).exists()
    with pytest.raises(ValueError, match="too long to write"):
        check_path(tmp_path / f"{stem}x.nii.gz")
    with pytest.raises(ValueError, match="too long to write"):
        check_path(tmp_path / ("x" * 256) / "a.nii.gz")


@pytest.mark.parametrize(
    "command",
    [
        ["segment", "SCAN", f"{LONG}.nii.gz", "--model", "MODEL"],
        ["segment", "SCAN", f"{'x' * 180}.nii.gz", "--model", "MODEL", "--probabilities"],
        ["segment", "SCAN", "m.nii.gz", "--model", "MODEL", "--overlay", f"{LONG}.png"],
        ["embed", "SCAN", f"{LONG}.npy", "--model", "MODEL"],
        ["shift", "SCAN", f"{LONG}.nii.gz", "--dose", "1"],
        ["compare", "MODEL", "MODEL", "--data", "SCAN", "--out", f"{LONG}.png"],
        ["evaluate", "DATA/labels", "DATA/labels", "--out", LONG],
        ["finetune", "DATA", "--model", "MODEL", "--out", LONG],
        ["robustness", "DATA", "--model", "MODEL", "--out", LONG],
    ],
    ids=lambda command: command[0],
)
def test_a_name_that_is_too_long_fails_before_the_work(
    command, labelled, tiny_segmenter, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    name = "label " + "l" * 60
    net = ctssl.segmenter(ctssl.load(tiny_segmenter), head="linear", labels={1: name})
    model = net.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(masks, "slide", lambda *_, **__: pytest.fail("it began to work"))
    places = {"SCAN": labelled / "images" / "case0.nii.gz", "MODEL": model}
    argv = [str(places.get(arg, arg.replace("DATA", str(labelled)))) for arg in command]
    before = sorted(tmp_path.rglob("*"))
    assert main(argv) == 2
    assert "too long to write" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_cells_that_a_spreadsheet_would_compute_are_text(labelled, tmp_path):
    rows = [{"=x": "@a", "n": -1.5}, {"=x": "+b", "more": "\rc"}]
    assert csv_text(rows) == "'=x,n,more\n'@a,-1.5,\n'+b,,'\rc\n"
    (labelled / "labels" / "case0.nii.gz").rename(labelled / "labels" / "=1+1.nii.gz")
    found = ctssl.evaluate(labelled / "labels", labelled / "labels")
    cells = (found.save(tmp_path / "out") / "cases.csv").read_text()
    assert "\n'=1+1," in cells and "\n=1+1" not in cells


@pytest.mark.parametrize("key", ["labels", "name"])
def test_a_config_that_controls_the_terminal_is_refused(tiny_segmenter, tmp_path, key):
    copy = tmp_path / "m"
    copy.mkdir()
    for file in tiny_segmenter.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    config = json.loads((copy / "config.json").read_text())
    config[key] = {"1": "\x1b[2Jtumour"} if key == "labels" else "\x1b]0;owned\x07"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="control a terminal") as caught:
        ctssl.load_segmenter(copy)
    assert "\x1b" not in str(caught.value)


def test_labels_that_cannot_be_printed_are_refused_before_a_training(labelled, tiny, tmp_path):
    with pytest.raises(ValueError, match="cannot be printed"):
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", names={1: "a\x1b[2J"}, progress=False)
    described = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "a\x1b[2J": 1}}
    (labelled / "dataset.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match="cannot be printed"):
        ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", progress=False)


def test_a_window_that_means_millions_of_windows_is_refused():
    with pytest.raises(ValueError, match="1331000 windows of 1 voxels, more than 1000000; set `window`"):
        windows.slide(lambda _: pytest.fail("it began"), np.ones((110, 110, 110), np.float32), 1, classes=2)


def test_a_folder_that_may_not_be_written_to_is_refused_before_the_work(
    monkeypatch, tmp_path, labelled, tiny_segmenter, capsys
):
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != tmp_path)
    scan, out = str(labelled / "images" / "case0.nii.gz"), str(tmp_path / "new" / "mask.nii.gz")
    for ask in (
        ["segment", str(labelled / "images"), str(tmp_path / "new"), "--model", str(tiny_segmenter)],
        ["segment", scan, str(tmp_path / "mask.nii.gz"), "--model", str(tiny_segmenter)],
        ["finetune", str(labelled), "--out", str(tmp_path / "new")],
    ):
        assert main(ask) == 1
        assert f"you may not write to {tmp_path}" in capsys.readouterr().err
    assert not Path(out).exists()


def test_a_file_in_the_place_of_a_folder_is_told_before_the_work(labelled, tmp_path, capsys):
    (tmp_path / "taken").write_text("mine")
    inside, masks = str(tmp_path / "taken" / "out"), str(labelled / "labels")
    scan = str(labelled / "images" / "case0.nii.gz")
    for command in (
        ["evaluate", masks, masks, "--out", inside],
        ["finetune", str(labelled), "--out", inside, "--dry-run"],
        ["segment", scan, f"{inside}.nii.gz", "--model", "lung-tumour-vit-wild-lesions"],
        [
            "segment",
            str(labelled / "images"),
            str(tmp_path / "taken"),
            "--model",
            "lung-tumour-vit-wild-lesions",
        ],
    ):
        assert main(command) == 2
        assert "taken is a file, not a folder; choose another output folder" in capsys.readouterr().err


def test_two_labels_of_one_name_are_refused(labelled):
    """Before volumes, maps and scores of one hide those of the other."""
    twice = {1: "tumour", 2: "tumour"}
    with pytest.raises(ValueError, match="labels 1 and 2 are both called 'tumour'"):
        ctssl.segmenter("vit-tiny-random", classes=3, labels=twice)
    with pytest.raises(ValueError, match="labels 1 and 2 are both called"):
        ctssl.finetune(labelled, out=labelled / "out", names=twice)
    described(labelled, labels={"1": "tumour", "2": "tumour"})
    with pytest.raises(ValueError, match="labels 1 and 2 are both called"):
        find_cases(labelled)
