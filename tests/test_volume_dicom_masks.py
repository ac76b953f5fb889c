"""Contours of an RTSTRUCT on the grid of their scan."""

from dataclasses import replace

import numpy as np
import pytest

import ctssl
from tests.support.dicom import grid_in_lps, square, write_rtstruct, write_series

pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install 'ctssl[dicom]'")


def test_contours_are_filled_even_odd_with_holes(tmp_path):
    from ctssl.volume.dicom_masks import read_rtstruct

    ring = [square(2.5, 12.5, 2.0), square(5.5, 8.5, 2.0), square(14.5, 16.5, 2.0), square(0.5, 3.5, 6.0)]
    write_rtstruct(tmp_path / "rs.dcm", {"tumour": ring})
    mask = read_rtstruct(tmp_path / "rs.dcm", grid_in_lps()).array
    assert mask.sum((0, 1)).tolist() == [0, 10 * 10 - 3 * 3 + 2 * 2, 0, 3 * 3]
    assert mask[3, 3, 1] and not mask[6, 7, 1] and mask[15, 16, 1] and not mask[13, 13, 1] and mask[12, 12, 1]


def test_a_polygon_fills_the_voxels_whose_centres_it_holds(tmp_path):
    """Against the winding of each voxel's centre, summed up as angles."""
    from ctssl.volume.dicom_masks import _toggle

    rng = np.random.default_rng(0)
    for _ in range(10):
        angles = np.sort(rng.uniform(0, 2 * np.pi, 9))
        polygon = 15 + rng.uniform(3, 12, (9, 1)) * np.stack([np.cos(angles), np.sin(angles)], 1)
        plane = np.zeros((30, 30), bool)
        _toggle(plane, polygon)
        centres = np.stack(np.meshgrid(np.arange(30), np.arange(30), indexing="ij"), -1)[:, :, None]
        a, b = polygon - centres, np.roll(polygon, -1, 0) - centres
        turned = np.arctan2(a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0], (a * b).sum(-1)).sum(-1)
        assert np.array_equal(plane, np.abs(turned) > np.pi)


def test_a_structure_is_chosen_by_name_and_foreign_contours_are_refused(tmp_path):
    from ctssl.volume.dicom_masks import read_rtstruct

    write_rtstruct(tmp_path / "rs.dcm", {"GTV-1": [square(1.5, 4.5, 0.0)], "Lung": [square(1.5, 9.5, 0.0)]})
    assert read_rtstruct(tmp_path / "rs.dcm", grid_in_lps(), roi="GTV-1").array.sum() == 9
    with pytest.raises(ValueError, match="2 structures.*'GTV-1', 'Lung'.*--roi"):
        read_rtstruct(tmp_path / "rs.dcm", grid_in_lps())
    with pytest.raises(ValueError, match="no structure 'PTV'"):
        read_rtstruct(tmp_path / "rs.dcm", grid_in_lps(), roi="PTV")
    write_rtstruct(tmp_path / "off.dcm", {"GTV-1": [square(1.5, 4.5, 1.0)]})
    with pytest.raises(ValueError, match="another series"):
        read_rtstruct(tmp_path / "off.dcm", grid_in_lps())


def rename(name):
    """An edit of `write_rtstruct` that gives every ROI one name, as where each lesion is drawn on its own."""

    def edit(image):
        for roi in image.StructureSetROISequence:
            roi.ROIName = name

    return edit


def test_rois_of_one_name_become_their_union(tmp_path):
    from ctssl.volume.dicom_masks import read_rtstruct

    lesions = {"a": [square(1.5, 4.5, 0.0)], "b": [square(9.5, 12.5, 2.0)], "c": [square(2.5, 5.5, 0.0)]}
    write_rtstruct(tmp_path / "rs.dcm", lesions, edit=rename("GTV"))
    for roi in (None, "GTV"):
        mask = read_rtstruct(tmp_path / "rs.dcm", grid_in_lps(), roi=roi).array
        assert mask.sum((0, 1)).tolist() == [9 + 9 - 4, 9, 0, 0]


def test_a_contour_listed_twice_counts_once(tmp_path):
    from ctssl.volume.dicom_masks import read_rtstruct

    outline, hole = square(2.5, 12.5, 2.0), square(5.5, 8.5, 2.0)
    again = [*outline[2:], *outline[:2]][::-1]  # from another corner, the other way round
    write_rtstruct(tmp_path / "rs.dcm", {"a": [outline, hole, outline, again, hole]})
    assert read_rtstruct(tmp_path / "rs.dcm", grid_in_lps()).array.sum() == 10 * 10 - 3 * 3


@pytest.mark.parametrize(
    ("outside", "lost"),
    [
        ([square(1.5, 4.5, 20.0)], 1),
        ([square(1.5, 4.5, -2.0), square(40.0, 44.0, 0.0)], 2),
        ([square(15.5, 24.5, 2.0)], 1),
    ],
    ids=["other slices", "before the first slice, and beside", "in part"],
)
def test_contours_outside_the_scan_are_counted_in_a_warning(tmp_path, outside, lost):
    from ctssl.volume.dicom_masks import read_rtstruct

    write_rtstruct(tmp_path / "rs.dcm", {"GTV": [square(1.5, 4.5, 0.0), *outside]})
    with pytest.warns(UserWarning, match=f"{lost} of {1 + len(outside)} contours of 'GTV' .*outside grid"):
        mask = read_rtstruct(tmp_path / "rs.dcm", grid_in_lps()).array
    assert mask[2:5, 2:5, 0].all() and mask.sum() == 9 + (16 if lost == 1 and outside[0][0][2] == 2.0 else 0)


@pytest.mark.parametrize(
    ("contours", "words"),
    [
        ([square(1.5, 4.5, 20.0), square(40.0, 44.0, 0.0)], "no voxel of grid .*2 of 2 contours"),
        ([square(1.6, 1.9, 0.0)], "no voxel of grid .*0 of 1 contours"),
        ([], "'GTV' has no closed contour"),
    ],
    ids=["all outside", "smaller than a voxel", "nothing drawn"],
)
def test_a_structure_without_a_voxel_is_an_error(tmp_path, contours, words):
    from ctssl.volume.dicom_masks import read_rtstruct

    write_rtstruct(tmp_path / "rs.dcm", {"GTV": contours})
    with pytest.raises(ValueError, match=words):
        read_rtstruct(tmp_path / "rs.dcm", grid_in_lps())


def test_contours_that_are_not_closed_are_counted_in_a_warning(tmp_path):
    from ctssl.volume.dicom_masks import read_rtstruct

    def edit(image):
        image.ROIContourSequence[0].ContourSequence[1].ContourGeometricType = "POINT"

    write_rtstruct(tmp_path / "rs.dcm", {"GTV": [square(1.5, 4.5, 0.0), square(1.5, 4.5, 2.0)]}, edit=edit)
    with pytest.warns(UserWarning, match="1 of 2 contours of ROI 1 are left out"):
        assert read_rtstruct(tmp_path / "rs.dcm", grid_in_lps()).array.sum() == 9


def test_a_mask_of_another_frame_of_reference_or_series_is_told(tmp_path):
    from ctssl.volume.dicom_masks import read_rtstruct

    def edit(image):
        image.StructureSetROISequence[0].ReferencedFrameOfReferenceUID = "1.2.9"

    write_series(tmp_path / "ct")
    scan = ctssl.read(tmp_path / "ct")
    assert (scan.series_uid, scan.frame_uid) == ("1.2.3", "1.2.9")
    contours = {"GTV": [[(-9.7, -19.5, 30.0), (-8.7, -19.5, 30.0), (-8.7, -18.0, 30.0), (-9.7, -18.0, 30.0)]]}
    write_rtstruct(tmp_path / "rs.dcm", contours, edit=edit)
    assert read_rtstruct(tmp_path / "rs.dcm", scan).array.sum() == 4
    with pytest.raises(ValueError, match=r"frame of reference 1\.2\.9, ct lies in 1\.2\.8"):
        read_rtstruct(tmp_path / "rs.dcm", replace(scan, frame_uid="1.2.8"))
    write_rtstruct(tmp_path / "rs.dcm", contours, series="1.2.4", edit=edit)
    with pytest.warns(UserWarning, match=r"refers to series 1\.2\.4, ct is series 1\.2\.3"):
        assert read_rtstruct(tmp_path / "rs.dcm", scan).array.sum() == 4


def test_a_real_rtstruct_agrees_with_the_published_mask(data):
    from ctssl.metrics import dsc
    from ctssl.volume.dicom_masks import read_rtstruct
    from ctssl.volume.grids import resample

    scan = ctssl.read(data / "dicom" / "STS_008" / "ct")
    mask = read_rtstruct(data / "dicom" / "STS_008" / "rtstruct" / "RS.dcm", scan)
    label = ctssl.read(data / "sarcoma" / "labels" / "STS_008.nii.gz")
    there = resample(label.array, label.affine, scan.shape, scan.affine, fill=-1.0)
    both = there >= 0  # where the cropped label covers the series
    assert dsc(mask.array[both] > 0, there[both] > 0.5) >= 0.95
