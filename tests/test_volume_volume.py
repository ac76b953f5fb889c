"""Reading and saving scans and masks."""

import dataclasses
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

import ctssl
from ctssl.datasets.case import fit_mask
from ctssl.evaluation.scores import score_masks
from ctssl.volume.channels import Channels
from ctssl.volume.volume import Volume


def test_what_is_saved_is_read_again(tmp_path, ball):
    scan, mask = ball
    again = ctssl.read(scan.save(tmp_path / "scan.nii.gz"))
    np.testing.assert_array_equal(again.array, scan.array)
    np.testing.assert_allclose(again.affine, scan.affine)
    assert again.array.dtype == np.float32 and again.spacing_mm == (2.0, 2.0, 3.0)
    assert nibabel.load(mask.save(tmp_path / "mask.nii")).get_data_dtype() == np.uint8


def test_an_existing_file_is_never_destroyed(tmp_path, ball):
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="overwrite"):
        ball[0].save(path)
    assert path.read_bytes() == b"precious"
    ball[0].save(path, overwrite=True)
    assert ctssl.read(path).shape == ball[0].shape
    assert [p.name for p in tmp_path.iterdir()] == ["scan.nii.gz"]


def test_slope_and_intercept_of_the_file_are_applied(tmp_path):
    image = nibabel.Nifti1Image(np.arange(27, dtype=np.int16).reshape(3, 3, 3), np.diag([2.0, 2, 2, 1]))
    image.header.set_slope_inter(2.0, -1024.0)
    path = tmp_path / "scaled.nii"
    image.to_filename(path)
    data = np.asarray(nibabel.load(path).dataobj)
    np.testing.assert_allclose(ctssl.read(path).array, data)


def test_a_volume_made_in_python_is_looked_at_too(tmp_path):
    array = np.zeros((4, 4, 4), np.float32)
    array[1, 1, 1] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite voxels; replace them"):
        ctssl.read(Volume(array, np.eye(4)))
    assert (
        ctssl.read(Volume(array == 0, np.diag([2.0, 2, 2, 1])).save(tmp_path / "m.nii.gz")).array.sum() == 63
    )


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_a_mask_keeps_the_header_of_its_scan(tmp_path, kind):
    """But for what its own voxels say: type, slope, window."""
    image = kind(np.arange(64, dtype=np.int16).reshape(4, 4, 4), np.diag([-2.0, 2, 3, 1]))
    image.set_sform(image.affine, code=2)
    image.set_qform(image.affine, code=1)
    image.header.set_slope_inter(2.0, -1024.0)
    image.header["descrip"], image.header["cal_max"] = b"scanner 7", 400
    nibabel.save(image, tmp_path / "scan.nii.gz")
    scan = ctssl.read(tmp_path / "scan.nii.gz")
    mask = dataclasses.replace(scan, array=(scan.array > -950).astype(np.uint8))
    found = nibabel.load(mask.save(tmp_path / "mask.nii.gz"))
    assert bytes(found.header["descrip"]).rstrip(b"\0") == b"scanner 7"
    assert (int(found.header["sform_code"]), int(found.header["qform_code"])) == (2, 1)
    assert found.get_data_dtype() == np.uint8 and float(found.header["cal_max"]) == 0
    np.testing.assert_array_equal(np.asarray(found.dataobj), mask.array)
    np.testing.assert_allclose(found.affine, image.affine)
    again = nibabel.load(scan.save(tmp_path / "again.nii.gz"))
    np.testing.assert_allclose(np.asarray(again.dataobj), scan.array)


def bad_inputs(folder: Path) -> dict:
    rgb = np.zeros((4, 4, 4), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), folder / "rgb.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 3), np.int16), np.eye(4)), folder / "four.nii.gz")
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4), np.int16), np.eye(4)), folder / "flat.nii.gz")
    whole = folder / "whole.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.random.default_rng(0).normal(size=(40, 40, 40)), np.eye(4)), whole)
    (folder / "cut.nii.gz").write_bytes(whole.read_bytes()[:2000])
    (folder / "empty.nii.gz").write_bytes(b"")
    (folder / "text.nii").write_text("this is no scan")
    (folder / "scan.mha").write_text("x")
    nan = np.zeros((4, 4, 4), np.float32)
    nan[0, 0, 0] = np.nan
    return {
        "RGB": folder / "rgb.nii.gz",
        "one 3D scan": folder / "four.nii.gz",
        "2D|3D": folder / "flat.nii.gz",
        "cut.nii.gz is damaged": folder / "cut.nii.gz",
        "empty.nii.gz is damaged": folder / "empty.nii.gz",
        "text.nii is damaged": folder / "text.nii",
        "cannot read": folder / "scan.mha",
        "NaN": (nan, np.eye(4)),
        "affine": (np.zeros((4, 4, 4)), np.eye(3)),
        "singular": (np.zeros((4, 4, 4)), np.diag([1.0, 1.0, 0.0, 1.0])),
        "expected .array, affine": (np.zeros((4, 4, 4)),),
        "numbers in HU": (np.array([[["a"] * 2] * 2] * 2), np.eye(4)),
    }


def test_bad_input_is_refused_in_words(tmp_path):
    for words, source in bad_inputs(tmp_path).items():
        with pytest.raises(ValueError, match=words):
            ctssl.read(source)
    with pytest.raises(FileNotFoundError, match="no scan"):
        ctssl.read(tmp_path / "nothing.nii.gz")


@pytest.mark.parametrize("code", ["LPS", "PIR", "SAL", "ASR", "RAS"])
def test_the_axes_of_another_grid(code):
    """Of a tilted scan stored with other axis directions, as mask, channel and prediction; nothing is resampled."""
    array = np.random.default_rng(0).random((5, 6, 7)).astype(np.float32)
    tilt = Rotation.from_euler("xyz", [10, 20, 30], degrees=True).as_matrix()
    affine = np.eye(4)
    affine[:3] = np.column_stack([tilt @ np.diag([1.0, 2.0, 3.0]), [3.0, -4.0, 5.0]])
    straight = nibabel.nifti1.Nifti1Image(array, np.diag([1.0, 2.0, 3.0, 1.0]))
    wanted = nibabel.orientations.axcodes2ornt(code)
    turn = nibabel.orientations.ornt_transform(nibabel.orientations.io_orientation(straight.affine), wanted)
    stored = straight.as_reoriented(turn)
    there = affine @ np.linalg.inv(straight.affine) @ stored.affine
    scan, other = Volume(array, affine), Volume(np.asarray(stored.dataobj), there)
    back = other.with_axes_of(scan)
    np.testing.assert_array_equal(back.array, array)
    np.testing.assert_allclose(back.affine, affine, atol=1e-9)
    mask = fit_mask(scan, Volume((other.array > 0.5).astype(np.uint8), there), "case")
    np.testing.assert_array_equal(mask.array, array > 0.5)
    ct = Volume(array * 100, affine)
    np.testing.assert_array_equal(ctssl.read(Channels(ct, other)).extra[0], array)
    (row,) = score_masks(Volume((other.array > 0.5) * 1.0, there), mask, name="case", tolerance_mm=None)
    assert row["dsc"] == 1.0


def test_a_tensor_with_its_affine_as_a_tensor_is_one_scan(ball, encoder):
    scan = ball[0]
    both = torch.from_numpy(scan.array), torch.from_numpy(scan.affine)
    np.testing.assert_array_equal(encoder.embed(both), encoder.embed(scan))


def test_a_turned_or_moved_grid_is_not_another_order_of_axes():
    scan = Volume(np.zeros((5, 5, 5), np.float32), np.eye(4))
    turned = np.eye(4)
    turned[:3, :3] = Rotation.from_euler("z", 5, degrees=True).as_matrix()
    other = Volume(np.zeros((5, 5, 5), np.uint8), turned)
    assert other.with_axes_of(scan) is other
    moved = Volume(
        np.zeros((5, 5, 5), np.uint8), np.diag([-1.0, 1, 1, 1])
    )  # whose corner is not that of the scan
    with pytest.raises(ValueError, match="apart"):
        fit_mask(scan, moved, "case")
