"""Killed, out of space, unreadable, of another patient, of an odd size: what happens then, and the sentence that says so."""

import errno
import json
import os
import signal
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from safetensors import SafetensorError

import ctssl
from ctssl import datasets
from ctssl.cli.main import main
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.files import atomic as writing
from ctssl.finetuning.settings import Settings
from ctssl.inference.folder import segment_all
from ctssl.volume.volume import Volume
from tests import kill

QUICK = ("--steps", "3", "--batch", "1", "--crop", "16", "--hold-out", "case2", "--head", "linear")


@pytest.fixture
def tiny(tmp_path) -> Path:
    torch.manual_seed(0)
    encoder = ctssl.Swin(12, depths=(1, 1), heads=(2, 4), window=4, patch=2, merge_last=False)
    return encoder.save_pretrained(tmp_path / "tiny")


@pytest.fixture
def net(tiny):
    return ctssl.segmenter(ctssl.load(tiny), head="linear")


@pytest.fixture
def scans(tmp_path, ball) -> Path:
    (tmp_path / "scans").mkdir()
    for name in "abc":
        ball[0].save(tmp_path / "scans" / f"{name}.nii.gz")
    return tmp_path / "scans"


def same_weights(one: Path, two: Path) -> None:
    first, second = (ctssl.load_segmenter(folder).state_dict() for folder in (one, two))
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], atol=0, rtol=0, msg=key)


def test_a_training_killed_again_and_again_ends_as_one_that_was_left_alone(labelled, tiny, tmp_path):
    """Each time it is killed one rename further on: in the middle of keeping its state, and of writing the model."""

    def command(out):
        return ["finetune", str(labelled), "--out", str(out), "--model", str(tiny), "--json", *QUICK]

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


def test_a_training_killed_after_any_time_goes_on(labelled, tiny, tmp_path):
    command = [
        "finetune",
        str(labelled),
        "--out",
        str(tmp_path / "out"),
        "--model",
        str(tiny),
        "--json",
        *QUICK,
    ]
    for seconds in (0.3, 0.7, 1.1):
        if kill.run(command, after=seconds) == 0:
            break
        kill.whole(tmp_path / "out")
    # where there is a config, it was killed, if at all, when the model was whole already
    if not (tmp_path / "out" / "config.json").exists():
        assert kill.run(command) == 0 and not (tmp_path / "out" / ".unfinished").exists()
    assert "config.json" in kill.whole(tmp_path / "out")


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


def test_what_a_killed_process_left_is_no_hindrance_to_one_of_the_same_number(tiny, ball, tmp_path):
    """In a container every run may have the same process number."""
    (tmp_path / "again" / f".part-{os.getpid()}").mkdir(parents=True)
    (tmp_path / "again" / f".part-{os.getpid()}" / "junk").write_text("half a")
    again = ctssl.load(tiny).save_pretrained(tmp_path / "again")
    assert {path.name for path in again.iterdir()} == {"config.json", "model.safetensors"}
    (tmp_path / f".part-{os.getpid()}-s.nii.gz").write_text("half a")
    ball[0].save(tmp_path / "s.nii.gz")
    assert not list(tmp_path.glob(".part*"))


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

    import safetensors.torch

    save_file = safetensors.torch.save_file

    def stored(state, path, metadata=None) -> None:
        try:
            half(Path(path), b"half the weights")
        except OSError as error:  # safetensors tells in words of its own
            raise SafetensorError("I/O error: No space left on device (os error 28)") from error
        save_file(state, path, metadata=metadata)

    monkeypatch.setattr(Path, "write_bytes", written)
    monkeypatch.setattr(nibabel, "save", saved)
    monkeypatch.setattr(safetensors.torch, "save_file", stored)
    return lambda count: left.__setitem__(0, count)


def files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("count", range(4))
def test_a_full_disk_stops_a_folder_of_scans_and_leaves_whole_masks(net, scans, tmp_path, full, count):
    full(count)
    with pytest.raises(OSError, match=r"the disk is full: .* was not written; free some space") as raised:
        segment_all(net, {path.stem: path for path in sorted(scans.iterdir())}, tmp_path / "out")
    assert raised.value.errno == errno.ENOSPC
    assert len(kill.whole(tmp_path / "out")) == count == len(files(tmp_path / "out"))
    full(10**9)
    assert (
        segment_all(net, {path.stem: path for path in sorted(scans.iterdir())}, tmp_path / "out", resume=True)
        == {}
    )
    assert len(files(tmp_path / "out")) == 6


@pytest.mark.parametrize("count", range(7))
def test_a_full_disk_leaves_no_half_model_and_the_training_goes_on(labelled, tiny, tmp_path, full, count):
    """Wherever it happens: the state of the training, the weights, the report, the pictures."""
    settings = Settings(steps=2, batch=1, crop=16, save_minutes=0)
    how = dict(model=tiny, head="linear", hold_out=["case2"], settings=settings, progress=False)
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
    assert len(files(tmp_path / "report")) == count
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


def write_raw(path: Path, array: np.ndarray, spacing=(2.0, 2.0, 3.0)) -> Path:
    nibabel.Nifti1Image(array, np.diag([*spacing, 1.0])).to_filename(path)
    return path


def odd_scans(folder: Path, hu: np.ndarray) -> dict[str, tuple[Path, str]]:
    """Scans that cannot be used, each with its sentence."""
    holes = hu.copy()
    holes[3, 3, 3] = np.nan
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii.gz").write_text("no scan")
    whole = write_raw(folder / "whole.nii.gz", hu)
    (folder / "cut.nii.gz").write_bytes(whole.read_bytes()[:-400])
    (folder / "unreadable.nii").symlink_to(folder / "unreadable.nii")
    flat = bytearray(write_raw(folder / "flat.nii", hu).read_bytes())
    flat[40:56] = np.array([3, *hu.shape[:2], 0, 1, 1, 1, 1], "<i2").tobytes()
    (folder / "no-voxels.nii").write_bytes(flat)
    return {
        "zero bytes": (folder / "empty.nii.gz", "is damaged or not NIfTI"),
        "text": (folder / "text.nii.gz", "is damaged or not NIfTI"),
        "cut off": (folder / "cut.nii.gz", "is damaged or not NIfTI"),
        "no voxels": (folder / "no-voxels.nii", "its shape is"),
        "NaN": (write_raw(folder / "nan.nii.gz", holes), "NaN or infinite voxels; replace them"),
        "single slice": (
            write_raw(folder / "one.nii.gz", hu[:, :, 5:6]),
            "at least two voxels along each axis",
        ),
        "2D": (write_raw(folder / "2d.nii.gz", hu[:, :, 5]), "2D|3D scan is needed|at least two voxels"),
        "windowed": (write_raw(folder / "w.nii.gz", np.clip((hu + 500) / 1000, 0, 1)), "already windowed"),
        "constant": (write_raw(folder / "c.nii.gz", hu * 0), "there is no scan in it"),
        "not there": (folder / "nothing.nii.gz", "no scan at"),
        "a link to itself": (folder / "unreadable.nii", "no scan at|too many|symbolic|symlink"),
    }


ODD = (
    "zero bytes",
    "text",
    "cut off",
    "no voxels",
    "NaN",
    "single slice",
    "2D",
    "windowed",
    "constant",
    "not there",
    "a link to itself",
)


@pytest.mark.parametrize("what", ODD)
def test_a_scan_that_cannot_be_used_has_its_sentence(net, ball, tmp_path, capsys, what):
    """Through the library, and through the command: exit code 2 (1 for the system's own errors), words, no traceback."""
    path, words = odd_scans(tmp_path, ball[0].array)[what]
    with pytest.raises((ValueError, FileNotFoundError, OSError), match=words):
        net.segment(path)
    net.save_pretrained(tmp_path / "net")
    out = tmp_path / "mask.nii.gz"
    code = main(["segment", str(path), str(out), "--model", str(tmp_path / "net")])
    said = capsys.readouterr().err
    assert code == (1 if "OSError" in said else 2) and "Traceback" not in said
    assert any(part in said for part in words.split("|")) and not out.exists()


def test_an_unreadable_scan_of_a_folder_does_not_stop_the_others(net, ball, tmp_path):
    odd = odd_scans(tmp_path, ball[0].array)
    failed = segment_all(
        net,
        {"good": tmp_path / "whole.nii.gz", **{f"odd{i}": p for i, (p, _) in enumerate(odd.values())}},
        tmp_path / "out",
    )
    assert sorted(failed) == sorted(f"odd{i}" for i in range(len(odd)))
    assert files(tmp_path / "out") == ["good.ctssl.json", "good.nii.gz"]


@pytest.mark.parametrize("thickness", [1.0, 8.0])
def test_thin_and_thick_slices_give_masks_on_their_own_grid(net, thickness):
    shape = (24, 20, round(64 / thickness))
    hu = np.random.default_rng(0).normal(-200, 300, shape).astype(np.float32)
    scan = Volume(hu, np.diag([3.0, 3.0, thickness, 1.0]), "scan")
    mask = net.segment(scan)
    assert mask.shape == shape and mask.spacing_mm == scan.spacing_mm and set(np.unique(mask.array)) <= {0, 1}


@pytest.mark.parametrize("shape", [(3, 3, 3), (2, 40, 5), (9, 2, 70)])
def test_an_image_smaller_than_the_window_is_segmented(net, shape):
    hu = np.random.default_rng(0).normal(-200, 300, shape).astype(np.float32)
    scan = Volume(hu, np.diag([6.0, 6.0, 6.0, 1.0]), "small")
    assert min(shape) * 3 < net.window and net.segment(scan).shape == shape
    assert torch.isfinite(net.encoder.embed(scan)).all()


def test_a_training_on_images_smaller_than_the_crop_works(tiny, tmp_path):
    for kind in ("images", "labels"):
        (tmp_path / "small" / kind).mkdir(parents=True)
    for i in range(3):
        hu = np.random.default_rng(i).normal(-200, 300, (12, 9, 5)).astype(np.float32)
        mask = np.zeros(hu.shape, np.uint8)
        mask[4:8, 3:6, 1:4] = 1
        affine = np.diag([3.0, 3.0, 8.0, 1.0])
        Volume(hu, affine).save(tmp_path / "small" / "images" / f"{i}.nii.gz")
        Volume(mask, affine).save(tmp_path / "small" / "labels" / f"{i}.nii.gz")
    settings = Settings(steps=1, batch=1, crop=64)
    report = ctssl.finetune(
        tmp_path / "small", model=tiny, head="linear", out=tmp_path / "m", settings=settings, progress=False
    )
    assert 0 <= report.mean_dsc <= 1


def other_patient(labelled: Path, ball, how: str) -> str:
    """Give case1 a mask that is not its own; the sentence that says so."""
    mask = ball[1]
    array, affine = mask.array, mask.affine.copy()
    if how == "shape":
        array = np.pad(array, ((0, 0), (0, 0), (0, 4)))
    elif how == "place":
        affine[2, 3] += 35
    elif how == "spacing":
        affine[2, 2] *= 1.2
    else:
        array = np.zeros_like(array)
        array[:2, :2, :2] = 1  # a corner, in the air
    Volume(array, affine).save(labelled / "labels" / "case1.nii.gz", overwrite=True)
    return {
        "shape": "its mask",
        "place": "35.0 mm apart",
        "spacing": "mm apart",
        "outside": "in the air around the body",
    }[how]


@pytest.mark.parametrize("how", ["shape", "place", "spacing", "outside"])
def test_the_label_of_another_patient_is_noticed(labelled, ball, tiny, tmp_path, capsys, how):
    words = other_patient(labelled, ball, how)
    (found,) = problems(find_cases(labelled))
    assert found.case == "case1" and words in found.message
    assert found.level == ("warning" if how == "outside" else "error")
    assert main(["check", str(labelled)]) == (0 if how == "outside" else 2)
    said = capsys.readouterr()
    assert f"case1: {found.message}" in said.out and "Traceback" not in said.err
    if how != "outside":
        assert (
            main(["finetune", str(labelled), "--model", str(tiny), "--out", str(tmp_path / "m"), *QUICK]) == 2
        )
        assert words in capsys.readouterr().err and not (tmp_path / "m").exists()


def test_a_mask_in_the_lung_or_in_an_airway_is_inside_the_body(ball):
    from ctssl.lint import outside_body

    scan, mask = ball
    hollow = scan.array.copy()
    hollow[15:21, 12:18] = -1000  # a hole through all slices, as the trachea is
    airway = np.zeros_like(mask.array)
    airway[16:20, 13:17] = 1
    for axes in ((0, 1, 2), (2, 0, 1), (1, 2, 0)):  # however the scan lies in its file
        affine = np.eye(4)
        affine[:3, :3] = scan.affine[:3, :3][:, axes]
        turned = [Volume(np.transpose(a, axes), affine) for a in (hollow, airway)]
        assert not outside_body(*turned)
    corner = np.zeros_like(mask.array)
    corner[:2, :2] = 1
    assert outside_body(Volume(hollow, scan.affine), Volume(corner, scan.affine))
    assert not outside_body(scan, mask) and not outside_body(scan, Volume(mask.array * 0, mask.affine))


def test_a_long_table_with_a_fault_is_refused_before_scans_are_read(labelled, monkeypatch, capsys):
    """Names and splits are looked at first: nobody waits for ten thousand scans to hear of a missing file."""
    monkeypatch.setattr(datasets, "read_case", lambda case: pytest.fail("a scan was read"))
    rows = [f"c{i},images/case{i % 3}.nii.gz,labels/case{i % 3}.nii.gz" for i in range(5000)]
    began = time.monotonic()
    for wrong in (
        "c1,images/case0.nii.gz,labels/case0.nii.gz",
        "z,images/gone.nii.gz,labels/case0.nii.gz",
        "z,images/case0.nii.gz,",
    ):
        (labelled / "cases.csv").write_text("\n".join(["id,image,label", *rows, wrong]) + "\n")
        assert main(["check", str(labelled / "cases.csv")]) == 2
        assert "cases.csv" in capsys.readouterr().err
    assert time.monotonic() - began < 5
