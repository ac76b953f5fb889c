"""The linter finds what is wrong, and says nothing about scans that are right."""

import csv
import warnings

import nibabel
import numpy as np
import pytest

import ctssl
from ctssl.phantom import phantom
from ctssl.scan_checks import ScanWarning, check, lint
from ctssl.volume.volume import Volume


@pytest.fixture(scope="module")
def scan() -> Volume:
    return phantom(4.0)[0]


def codes(volume: Volume) -> list[tuple[str, str]]:
    return [(finding.level, finding.code) for finding in lint(volume)]


def changed(scan: Volume, array: np.ndarray) -> Volume:
    return Volume(array.astype(np.float32), scan.affine, "changed")


def test_the_phantom_is_fine(scan):
    assert codes(scan) == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda hu: np.clip((hu + 500) / 1000, 0, 1), ("error", "windowed")),
        (lambda hu: np.clip((hu + 160) / 400, 0, 1) * 2 - 1, ("error", "windowed")),
        (lambda hu: np.clip((hu + 160) / 400, 0, 1) * 255, ("error", "windowed")),
        (lambda hu: (hu > 0) * 2, ("error", "mask")),
        (lambda hu: hu + 1024, ("error", "rescale-missing")),
        (lambda hu: hu - 1024, ("error", "rescaled-twice")),
        (lambda hu: hu * 0 + 3, ("error", "constant")),
        (lambda hu: hu * 1000, ("error", "not-ct")),
        (lambda hu: (hu - hu.mean()) / hu.std(), ("error", "windowed")),
        (lambda hu: np.clip(hu, 0, None) * 2, ("error", "not-ct")),
    ],
)
def test_wrong_intensities_are_named(scan, change, expected):
    assert codes(changed(scan, change(scan.array))) == [expected]


@pytest.mark.parametrize(
    ("affine", "expected"),
    [
        (np.eye(4), ("warning", "identity-affine")),
        (np.diag([0.001, 0.001, 0.001, 1]), ("error", "spacing")),
        (np.diag([0.1, 0.1, 0.1, 1]), ("warning", "spacing")),
        (np.diag([4.0, 4.0, 80.0, 1]), ("error", "spacing")),
    ],
)
def test_wrong_geometry_is_named(scan, affine, expected):
    assert codes(Volume(scan.array, affine)) == [expected]


def test_corners_outside_the_field_of_view_are_no_second_rescale():
    """GE stores them as -2000, which becomes -3024: 21% of the scan, half of it air, a quarter of it tissue."""
    rng = np.random.default_rng(0)
    array = np.full((60, 60, 40), -1000.0, np.float32) + rng.normal(0, 15, (60, 60, 40)).astype(np.float32)
    x, y = np.meshgrid(np.arange(60) - 29.5, np.arange(60) - 29.5, indexing="ij")
    array[np.hypot(x / 17, y / 16) < 1] = 40
    array[np.hypot(x, y) > 30] = -3024
    volume = Volume(array, np.diag([7.0, 7, 5, 1]))
    assert 0.15 < (array == -3024).mean() < 0.25 and codes(volume) == []
    twice = np.where(array == -3024, -2048, array - 1024)
    assert codes(Volume(twice, volume.affine)) == [("error", "rescaled-twice")]


def test_a_lost_geometry_is_seen_in_every_form(scan, tmp_path):
    """No transform at all, which NIfTI allows; the identity."""
    bare = nibabel.Nifti1Image(scan.array, None)
    assert int(bare.header["sform_code"]) == int(bare.header["qform_code"]) == 0
    nibabel.save(bare, tmp_path / "bare.nii.gz")
    assert codes(ctssl.read(tmp_path / "bare.nii.gz")) == [("warning", "no-geometry")]
    assert codes(Volume(scan.array, np.eye(4))) == [("warning", "identity-affine")]


def two_forms(scan: Volume, qform: np.ndarray) -> nibabel.Nifti1Image:
    """The scan with its affine as sform and another one as qform."""
    image = nibabel.Nifti1Image(scan.array, scan.affine)
    image.set_sform(scan.affine, code=1)
    image.set_qform(qform, code=1, strip_shears=True)
    return image


@pytest.mark.parametrize(
    ("far", "said"), [((0, 0, 0), ""), ((1.9, 0, 0), ""), ((0, 0, 12.0), "up to 12.0 mm apart")]
)
def test_sform_and_qform_that_disagree_are_noticed(scan, tmp_path, far, said):
    """By more than half a voxel of 4 mm; the mask gets the one that was used as both."""
    qform = scan.affine.copy()
    qform[:3, 3] += far
    nibabel.save(two_forms(scan, qform), tmp_path / "scan.nii.gz")
    read = ctssl.read(tmp_path / "scan.nii.gz")
    assert codes(read) == ([("warning", "two-geometries")] if said else [])
    assert all(said in finding.message and "uses the sform" in finding.message for finding in lint(read))
    mask = nibabel.Nifti1Image.from_filename(
        Volume(read.array > 0, read.affine, header=read.header).save(tmp_path / "mask.nii.gz")
    )
    for form in (mask.get_sform(), mask.get_qform()):
        np.testing.assert_allclose(form, scan.affine, atol=1e-3)
    assert codes(ctssl.read(tmp_path / "mask.nii.gz"))[1:] == []  # a mask is no CT, but has one geometry


def test_an_invalid_qform_is_noticed_and_a_shear_that_it_cannot_hold_is_not(scan, tmp_path):
    image = two_forms(scan, scan.affine)
    image.header["quatern_b"] = 3
    nibabel.save(image, tmp_path / "broken.nii")
    assert [finding.code for finding in lint(ctssl.read(tmp_path / "broken.nii"))] == ["two-geometries"]
    tilted = scan.affine.copy()
    tilted[1, 2] = 1.0
    whole = Volume(scan.array, tilted).save(tmp_path / "tilted.nii.gz")
    assert codes(ctssl.read(whole)) == []


def test_errors_raise_and_doubts_warn(scan):
    with pytest.raises(ValueError, match="already windowed"):
        check(changed(scan, np.clip(scan.array / 1000, 0, 1)))
    with pytest.warns(ScanWarning, match="identity"):
        check(Volume(scan.array, np.eye(4)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check(scan) is scan


@pytest.mark.slow
def test_no_false_alarm_on_any_real_scan(data):
    with open(data / "cases.csv", newline="") as file:
        paths = [data / row["image"] for row in csv.DictReader(file) if row["image"].endswith(".nii.gz")]
    assert len(paths) > 100
    found = {path.name: lint(ctssl.read(path)) for path in sorted(set(paths))}
    assert {name: findings for name, findings in found.items() if findings} == {}
