"""A command that is killed goes on, and leaves whole files."""

import itertools
import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli import main
from ctssl.evaluation.report import WRITTEN
from tests.support import kill
from tests.support.dicom import write_series
from tests.support.tiny import QUICK_FLAGS


def same_weights(one: Path, two: Path) -> None:
    first, second = (ctssl.load_segmenter(folder).state_dict() for folder in (one, two))
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], atol=0, rtol=0, msg=key)


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_as_one_that_was_left_alone(labelled, tiny_folder, tmp_path):
    """Each time it is killed one rename further on: in the middle of keeping its state, and of writing the model."""

    def command(out):
        return [
            "finetune",
            str(labelled),
            "--out",
            str(out),
            "--model",
            str(tiny_folder),
            "--json",
            *QUICK_FLAGS,
        ]

    assert kill.run(command(tmp_path / "alone")) == 0
    out, killed = tmp_path / "out", 0
    for moment in (1, 2, 3, 6, 5, 4, 7, 12, None):
        code = kill.run(command(out), at_rename=moment)
        kill.whole(tmp_path / "out")
        killed += code == -signal.SIGKILL
        if code == 0:
            break
        assert code == -signal.SIGKILL and not (out / "config.json").exists()
    assert code == 0 and killed >= 5
    same_weights(tmp_path / "alone", out)
    assert set(kill.whole(out)) == set(kill.whole(tmp_path / "alone"))
    kept = [
        json.loads((folder / "report.json").read_text())["held_out"] for folder in (out, tmp_path / "alone")
    ]
    assert kept[0] == kept[1]


@pytest.mark.slow
def test_a_training_killed_after_any_time_goes_on(labelled, tiny_folder, tmp_path):
    command = [
        "finetune",
        str(labelled),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(tiny_folder),
        "--json",
        *QUICK_FLAGS,
    ]
    for seconds in (0.3, 0.7, 1.1):
        if kill.run(command, after=seconds) == 0:
            break
        kill.whole(tmp_path / "out")
    # where there is a config, it was killed, if at all, when the model was whole already
    if not (tmp_path / "out" / "config.json").exists():
        assert kill.run(command) == 0 and not (tmp_path / "out" / ".unfinished").exists()
    assert "config.json" in kill.whole(tmp_path / "out")


@pytest.mark.slow
def test_a_folder_killed_while_it_is_segmented_goes_on(net, scans, tmp_path):
    net.save_pretrained(tmp_path / "net")

    def command(out, *more):
        return ["segment", str(scans), str(out), "--model", str(tmp_path / "net"), "--json", *more]

    assert kill.run(command(tmp_path / "alone")) == 0
    out, finished = tmp_path / "out", [0]
    for moment in (1, 2, 3, 4):
        code = kill.run(command(out, "--resume"), at_rename=moment)
        masks = [name for name in kill.whole(out) if name.endswith(".nii.gz")]
        assert len(masks) >= finished[-1], "a mask that was there is there"
        finished.append(len(masks))
        if code == 0:
            break
    assert kill.run(command(out, "--resume"), after=0.4) in (0, -signal.SIGKILL)
    assert kill.run(command(out, "--resume")) == 0
    assert kill.whole(out) == kill.whole(tmp_path / "alone")
    for name in "abc":
        both = [ctssl.read(folder / f"{name}.nii.gz").array for folder in (out, tmp_path / "alone")]
        np.testing.assert_array_equal(*both)


def test_what_a_killed_process_left_is_no_hindrance_to_one_of_the_same_number(tiny_folder, ball, tmp_path):
    """In a container every run may have the same process number."""
    (tmp_path / "again" / f".part-{os.getpid()}").mkdir(parents=True)
    (tmp_path / "again" / f".part-{os.getpid()}" / "junk").write_text("half a")
    again = ctssl.load(tiny_folder).save_pretrained(tmp_path / "again")
    assert {path.name for path in again.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
    }
    (tmp_path / f".part-{os.getpid()}-s.nii.gz").write_text("half a")
    ball[0].save(tmp_path / "s.nii.gz")
    assert not list(tmp_path.glob(".part*"))


def killed_at_every_rename(command: list[str], folder: Path) -> int:
    """Start the same command again and again, killed one rename further on each time; how often it was killed."""
    for moment in itertools.count(1):
        code = kill.run(command, at_rename=moment)
        kill.whole(folder)
        if code != -signal.SIGKILL:
            assert code == 0, f"refused after it was killed before rename {moment - 1}"
            return moment - 1
    raise AssertionError


@pytest.mark.slow
def test_an_evaluation_that_was_killed_is_started_again(labelled, tmp_path):
    masks = str(labelled / "labels")
    command = ["evaluate", masks, masks, "--against", masks, "--out", str(tmp_path / "out")]
    assert killed_at_every_rename(command, tmp_path / "out") == 4
    without_froc = set(WRITTEN) - {"froc.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == without_froc
    assert kill.run(command) == 2, "a finished one is not replaced"


def test_a_folder_of_the_users_is_not_taken_for_an_evaluation(labelled, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cases.csv").write_text("mine\n")
    command = ["evaluate", str(labelled / "labels"), str(labelled / "labels"), "--out", str(tmp_path / "out")]
    assert main(command) == 2 and (tmp_path / "out" / "cases.csv").read_text() == "mine\n"


@pytest.mark.slow
def test_a_comparison_that_was_killed_is_started_again(tiny_folder, ball, tmp_path):
    scan, out = ball[0].save(tmp_path / "s.nii.gz"), tmp_path / "out"
    out.mkdir()
    model = str(tiny_folder)
    command = ["compare", model, model, "--data", str(scan), "--crops", "4", "--size", "16"]
    command += ["--out", str(out / "c.png")]
    assert killed_at_every_rename(command, out) == 2
    assert {path.name for path in out.iterdir()} == {"c.png", "c.json"}
    assert kill.run(command) == 2
    (out / "c.json").unlink()
    assert kill.run(command) == 2, "a picture alone is the user's"


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--probabilities"]])
def test_a_scan_that_was_killed_while_it_was_segmented_is_started_again(tiny_segmenter, ball, tmp_path, more):
    scan, out = ball[0].save(tmp_path / "s.nii.gz"), tmp_path / "out"
    out.mkdir()
    command = ["segment", str(scan), str(out / "m.nii.gz"), "--model", str(tiny_segmenter), *more]
    command += ["--overlay", str(out / "m.png")]
    assert killed_at_every_rename(command, out) == 4 + len(more)
    assert {"m.nii.gz", "m.png", "m.ctssl.json"} <= {path.name for path in out.iterdir()}
    assert not list(out.glob(".part*"))
    assert kill.run(command) == 2


@pytest.mark.slow
@pytest.mark.parametrize("format", ["seg", "rtstruct"])
def test_a_series_that_was_killed_while_it_was_segmented_is_started_again(tiny_segmenter, tmp_path, format):
    pytest.importorskip("highdicom", reason="DICOM is the extra ctssl[dicom]")

    def with_air(k, image):
        image.RescaleIntercept = -2000

    write_series(tmp_path / "series", edit=with_air)
    out = tmp_path / "out"
    out.mkdir()
    command = ["segment", str(tmp_path / "series"), str(out / "m.dcm"), "--model", str(tiny_segmenter)]
    command += ["--format", format]
    command += ["--overlay", str(out / "m.png")]
    assert killed_at_every_rename(command, out) == 3
    assert {path.name for path in out.iterdir()} == {"m.dcm", "m.png"}
    assert kill.run(command) == 2


def test_a_picture_of_the_users_is_not_replaced_by_that_of_a_mask_begun(tiny_segmenter, ball, tmp_path):
    scan = ball[0].save(tmp_path / "s.nii.gz")
    (tmp_path / "mine.png").write_text("mine")
    (tmp_path / "m.ctssl.json").write_text(json.dumps({"state": "writing", "picture": "None"}))
    command = ["segment", str(scan), str(tmp_path / "m.nii.gz"), "--model", str(tiny_segmenter)]
    assert main([*command, "--overlay", str(tmp_path / "mine.png")]) == 2
    assert (tmp_path / "mine.png").read_text() == "mine"
