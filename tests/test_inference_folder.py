"""Scans that cannot be used, and of odd sizes: each has its sentence, and does not stop the others."""

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

import ctssl
from ctssl.cli.main import main
from ctssl.finetuning.settings import Settings
from ctssl.inference.folder import segment_folder
from ctssl.volume.volume import Volume
from tests.support.folders import files


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
        "no voxels": (folder / "no-voxels.nii", "invalid shape"),
        "NaN": (write_raw(folder / "nan.nii.gz", holes), "NaN or infinite voxels; replace them"),
        "single slice": (
            write_raw(folder / "one.nii.gz", hu[:, :, 5:6]),
            "at least two voxels along each axis",
        ),
        "2D": (write_raw(folder / "2d.nii.gz", hu[:, :, 5]), "2D|3D scan is needed|at least two voxels"),
        "windowed": (write_raw(folder / "w.nii.gz", np.clip((hu + 500) / 1000, 0, 1)), "already windowed"),
        "constant": (write_raw(folder / "c.nii.gz", hu * 0), "give a scan in HU"),
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


@pytest.mark.slow
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
    failed = segment_folder(
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


@pytest.mark.slow
def test_a_training_on_images_smaller_than_the_crop_works(tiny_folder, tmp_path):
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
        tmp_path / "small",
        model=tiny_folder,
        head="linear",
        out=tmp_path / "m",
        settings=settings,
        progress=False,
    )
    assert 0 <= report.mean_dsc <= 1
