"""Contours of an RTSTRUCT on the grid of their scan."""

import numpy as np
import pytest

import ctssl
from tests.support.dicom import grid_in_lps, square, write_rtstruct

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
