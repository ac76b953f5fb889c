"""DICOM folders, against the NIfTI of the same series, and broken ones made on the spot."""

import shutil

import numpy as np
import pytest

import ctssl
from ctssl.datasets.scans import find_scans, list_scans
from ctssl.volume.volume import read_grid
from tests.support.dicom import write_series

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")


def test_values_and_places_are_those_of_the_headers(tmp_path):
    write_series(tmp_path / "scan", count=5)
    scan = ctssl.read(tmp_path / "scan")
    assert scan.shape == (4, 5, 5) and scan.array.dtype == np.float32
    np.testing.assert_allclose(scan.array[2, 3, 4], 432)
    np.testing.assert_allclose(scan.affine @ [0, 0, 0, 1], [10, 20, 30, 1])  # LPS to RAS
    np.testing.assert_allclose(scan.affine @ [2, 3, 4, 1], [10 - 2 * 0.5, 20 - 3 * 0.8, 30 + 4 * 2.5, 1])


def test_a_tilted_gantry_gives_a_sheared_affine(tmp_path):
    write_series(tmp_path / "scan", tilt_mm=1.0)
    affine = ctssl.read(tmp_path / "scan").affine
    np.testing.assert_allclose(affine[:3, 2], [0, -1.0, 2.5])


def test_the_grid_is_known_from_the_headers_alone(tmp_path, tiny_segmenter, monkeypatch):
    write_series(tmp_path / "scan", tilt_mm=1.0)
    write_series(tmp_path / "scan", count=3, uid="9.9")
    for uid in ("1.2.3", "9.9"):
        scan, grid = ctssl.read(tmp_path / "scan", series=uid), read_grid(tmp_path / "scan", series=uid)
        assert grid.shape == scan.shape
        np.testing.assert_allclose(grid.affine, scan.affine)
    with pytest.raises(ValueError, match="choose one"):
        read_grid(tmp_path / "scan")
    shutil.rmtree(tmp_path / "scan")
    write_series(tmp_path / "scan")
    monkeypatch.setattr("ctssl.volume.dicom.decode_pixels", lambda *_: pytest.fail("pixels were read"))
    with pytest.raises(ValueError, match="--max-memory"):
        ctssl.load_segmenter(tiny_segmenter).segment(tmp_path / "scan", max_memory_gb=1e-6)


def test_a_real_series_equals_its_nifti(data):
    scan, nifti = (
        ctssl.read(data / "dicom" / "STS_008"),
        ctssl.read(data / "sarcoma" / "images" / "STS_008.nii.gz"),
    )
    centre = np.array([*(np.array(nifti.shape) // 2), 1.0])
    for offset in ([0, 0, 0, 0], [20, -15, 3, 0], [-25, 10, -4, 0]):
        place = nifti.affine @ (centre + offset)
        here = np.round((np.linalg.inv(scan.affine) @ place)[:3]).astype(int)
        there = np.round(centre + offset).astype(int)[:3]
        one, two = (
            v.array[tuple(slice(c - 2, c + 3) for c in at)].mean() for v, at in ((scan, here), (nifti, there))
        )
        assert abs(one - two) < 40


def test_several_series_are_listed_and_one_can_be_chosen(tmp_path):
    write_series(tmp_path / "scan", uid="1.2.3")
    write_series(tmp_path / "scan", uid="1.2.4", count=4)
    with pytest.raises(ValueError, match=r"2 series(.|\n)*1\.2\.3  6 images(.|\n)*1\.2\.4  4 images"):
        ctssl.read(tmp_path / "scan")
    assert ctssl.read(tmp_path / "scan", series="1.2.4").shape[2] == 4
    with pytest.raises(ValueError, match="no series 9"):
        ctssl.read(tmp_path / "scan", series="9")


def test_missing_and_doubled_slices_are_refused(tmp_path):
    write_series(tmp_path / "scan")
    files = sorted((tmp_path / "scan").iterdir())
    shutil.copy(files[1], tmp_path / "scan" / "copy.dcm")
    with pytest.raises(ValueError, match="same place"):
        ctssl.read(tmp_path / "scan")
    (tmp_path / "scan" / "copy.dcm").unlink()
    next(f for f in files if pydicom.dcmread(f).ImagePositionPatient[2] == 35).unlink()
    with pytest.raises(ValueError, match="slices are missing.*after slice 2 of 5"):
        ctssl.read(tmp_path / "scan")


def test_what_is_not_a_ct_series_is_refused(tmp_path):
    write_series(tmp_path / "mr", modality="MR")
    with pytest.raises(ValueError, match="MR, not CT"):
        ctssl.read(tmp_path / "mr")
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no DICOM"):
        ctssl.read(tmp_path / "none")
    write_series(tmp_path / "one", count=1)
    with pytest.raises(ValueError, match="one image"):
        ctssl.read(tmp_path / "one")
    write_series(tmp_path / "cut")
    victim = sorted((tmp_path / "cut").iterdir())[0]
    victim.write_bytes(victim.read_bytes()[:-20])
    with pytest.raises(ValueError, match="cannot decode"):
        ctssl.read(tmp_path / "cut")


def place(x, y, z):
    """An edit of `write_series` that moves each slice to `x(k), y(k), z(k)` mm."""

    def edit(k, image):
        image.ImagePositionPatient = [float(f"{axis(k):.6g}") for axis in (x, y, z)]

    return edit


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (place(lambda k: -10 + 30 * (k == 3), lambda k: -20, lambda k: k), "slice 4 of 40 lies .* beside"),
        (place(lambda k: -10 + 30 * (k >= 20), lambda k: -20, lambda k: k), "beside the line"),
        (place(lambda k: -10, lambda k: -20, lambda k: k + 0.095 * k * (k - 1) / 78), "beside the line"),
        (place(lambda k: -10, lambda k: -20 + 3 * k, lambda k: k), "shift by 3 mm .* per 1 mm"),
    ],
    ids=[
        "one slice aside",
        "two reconstruction centres",
        "a drifting distance",
        "a shift steeper than any tilt",
    ],
)
def test_slices_that_do_not_lie_on_one_line_are_refused(tmp_path, edit, words):
    write_series(tmp_path / "scan", count=40, edit=edit)
    with pytest.raises(ValueError, match=words):
        ctssl.read(tmp_path / "scan")


def test_rounded_positions_of_a_tilted_gantry_are_accepted(tmp_path):
    """A tilt of 20 degrees, positions written with one decimal: the grid is that of the fitted line."""
    y, z = (
        (lambda k: round(-20 + 1.25 * k * np.sin(0.349), 1)),
        (lambda k: round(1.25 * k * np.cos(0.349), 1)),
    )
    write_series(tmp_path / "scan", count=40, edit=place(lambda k: -10, y, z))
    affine = ctssl.read(tmp_path / "scan").affine
    np.testing.assert_allclose(affine[:3, 2], [0, -1.25 * np.sin(0.349), 1.25 * np.cos(0.349)], atol=2e-3)


@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("PatientID", "2 values of PatientID"),
        ("FrameOfReferenceUID", "2 values of FrameOfReferenceUID"),
        ("RescaleSlope", "RescaleSlope is missing in 3 of 6 slices"),
        ("RescaleIntercept", "RescaleIntercept is missing in 3 of 6 slices"),
    ],
)
def test_slices_of_two_patients_frames_or_scales_are_refused(tmp_path, key, words):
    def edit(k, image):
        if k % 2 and key.startswith("Rescale"):
            delattr(image, key)
        elif k % 2:
            setattr(image, key, "1.2.77")

    write_series(tmp_path / "scan", edit=edit)
    with pytest.raises(ValueError, match=words):
        ctssl.read(tmp_path / "scan")


def test_the_one_ct_beside_a_pet_and_a_localiser_is_taken(tmp_path):
    write_series(tmp_path / "scan", uid="1.1")
    write_series(tmp_path / "scan", uid="1.2", modality="PT")
    write_series(tmp_path / "scan", uid="1.3", count=1)
    found = ctssl.read(tmp_path / "scan")
    assert found.series_uid == "1.1" and read_grid(tmp_path / "scan").shape == found.shape
    with pytest.raises(ValueError, match="PT, not CT"):
        ctssl.read(tmp_path / "scan", series="1.2")


def test_a_file_names_its_series(tmp_path):
    for uid, count in (("1.1", 6), ("1.2", 4)):
        write_series(tmp_path / "scan", uid=uid, count=count)
    files = [
        file
        for file in sorted((tmp_path / "scan").iterdir())
        if pydicom.dcmread(file).SeriesInstanceUID == "1.2"
    ]
    named = files[0] if files[0].suffix == ".dcm" else files[0].rename(files[0].with_suffix(".dcm"))
    assert ctssl.read(named).shape[2] == 4


def test_series_behind_links_are_found(tmp_path):
    write_series(tmp_path / "store" / "ct")
    (tmp_path / "study" / "P1").mkdir(parents=True)
    (tmp_path / "study" / "P1" / "ct").symlink_to(tmp_path / "store" / "ct")
    (tmp_path / "study" / "P1" / "again").symlink_to(tmp_path / "study")  # a loop
    assert list_scans(tmp_path / "study", series=True) == {"P1": tmp_path / "study" / "P1"}
    assert ctssl.read(tmp_path / "study" / "P1").shape == (4, 5, 6)
    assert [scan.path.name for scan in find_scans(tmp_path / "study")] == ["ct"]
