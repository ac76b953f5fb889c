"""Metrics against numbers worked by hand, and against plain references on random shapes."""

import math
import tracemalloc
import warnings

import numpy as np
import pytest
from scipy import ndimage

from ctssl import metrics
from ctssl.metrics import dsc, hd95, lesions, nsd

SPACING = (1.0, 2.0, 3.0)


def test_dsc_by_hand():
    a, b = np.zeros((4, 4, 4), bool), np.zeros((4, 4, 4), bool)
    assert dsc(a, b) == 1.0
    a[:2] = True  # 32 voxels
    assert dsc(a, b) == 0.0
    b[1:3] = True  # 32 voxels, 16 shared
    assert dsc(a, b) == 0.5
    b[3] = True  # 48 voxels, 16 shared
    assert dsc(a, b) == pytest.approx(2 * 16 / 80)
    with pytest.raises(ValueError, match="one grid"):
        dsc(a, b[:2])


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_plates_that_lie_apart_have_their_distance_in_mm(axis):
    a, b = np.zeros((12, 12, 12), bool), np.zeros((12, 12, 12), bool)
    index = [slice(None)] * 3
    index[axis] = slice(2, 3)
    a[tuple(index)] = True
    index[axis] = slice(6, 7)
    b[tuple(index)] = True
    distance = 4 * SPACING[axis]
    assert hd95(a, b, spacing_mm=SPACING) == pytest.approx(distance)
    assert nsd(a, b, spacing_mm=SPACING, tolerance_mm=distance + 1.6 * SPACING[axis]) == pytest.approx(1.0)
    assert (
        nsd(a, b, spacing_mm=SPACING, tolerance_mm=distance - 1.6 * SPACING[axis]) < 0.2
    )  # but for the shared rims


def naive_hd95(a, b, spacing):
    """Surface voxels by erosion, every distance, the larger of both 95th percentiles."""
    points = [np.argwhere(m & ~ndimage.binary_erosion(m)) * np.array(spacing) for m in (a, b)]
    distances = np.linalg.norm(points[0][:, None] - points[1][None], axis=-1)
    return max(np.percentile(distances.min(1), 95), np.percentile(distances.min(0), 95))


def test_hd95_is_its_definition_on_random_shapes():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = (ndimage.gaussian_filter(rng.normal(size=(20, 18, 16)), 2) > 0.02 for _ in range(2))
        a[[0, -1]] = b[[0, -1]] = a[:, [0, -1]] = b[:, [0, -1]] = a[:, :, [0, -1]] = b[:, :, [0, -1]] = False
        assert hd95(a, b, spacing_mm=SPACING) == pytest.approx(naive_hd95(a, b, SPACING), rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_nsd_is_that_of_deepminds_surface_distance():
    """On random shapes that lie inside the image: the same elements of the surface, the same areas."""
    theirs = pytest.importorskip("surface_distance")
    rng = np.random.default_rng(1)
    for tolerance in (1.0, 2.0, 3.5):
        a, b = (ndimage.gaussian_filter(rng.normal(size=(30, 24, 20)), 3) > 0.01 for _ in range(2))
        for mask in (a, b):
            mask[[0, -1]] = mask[:, [0, -1]] = mask[:, :, [0, -1]] = False
        distances = theirs.compute_surface_distances(a, b, SPACING)
        expected = theirs.compute_surface_dice_at_tolerance(distances, tolerance)
        assert nsd(a, b, spacing_mm=SPACING, tolerance_mm=tolerance) == pytest.approx(expected, abs=1e-6)
        assert 0.2 < expected < 0.9


@pytest.mark.parametrize("slab", [1, 700, 1 << 21])
def test_surfaces_are_monais_wherever_they_are_cut(slab, monkeypatch):
    """Also of masks that touch the border of the image, and whose boxes lie apart."""
    import torch
    from monai.metrics.hausdorff_distance import compute_hausdorff_distance
    from monai.metrics.surface_dice import compute_surface_dice

    monkeypatch.setattr(metrics, "SLAB", slab)
    rng = np.random.default_rng(2)
    for shape, level in (((24, 9, 17), 0.0), ((12, 20, 20), 0.03)):
        a, b = (ndimage.gaussian_filter(rng.normal(size=shape), 2) > level for _ in range(2))
        b[:5] = False
        pair = [torch.from_numpy(np.pad(mask, 2))[None, None].float() for mask in (a, b)]
        how = dict(include_background=True, spacing=list(SPACING))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            far = compute_hausdorff_distance(*pair, percentile=95, **how)
            near = compute_surface_dice(*pair, class_thresholds=[2.0], use_subvoxels=True, **how)
        assert hd95(a, b, spacing_mm=SPACING) == pytest.approx(float(far), rel=1e-5)
        assert nsd(a, b, spacing_mm=SPACING) == pytest.approx(float(near), rel=1e-5)


def test_memory_follows_the_surface_and_not_the_scan():
    """Two stray voxels in opposite corners took 158 bytes per voxel of the scan."""
    a = np.zeros((128, 128, 150), bool)
    a[0, 0, 0] = a[-1, -1, -1] = a[60:64, 60:64, 60:64] = True
    tracemalloc.start()
    far, near = hd95(a, a, spacing_mm=SPACING), nsd(a, a, spacing_mm=SPACING)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (far, near) == (0.0, 1.0) and peak < 8 * a.size


def test_a_ball_against_a_larger_one():
    x, y, z = np.meshgrid(*[np.arange(40) - 20] * 3, indexing="ij")
    small, large = (x**2 + y**2 + z**2 < r**2 for r in (10, 13))
    assert hd95(small, large, spacing_mm=(1, 1, 1)) == pytest.approx(3, abs=0.6)
    assert hd95(small, large, spacing_mm=(2, 2, 2)) == pytest.approx(
        2 * hd95(small, large, spacing_mm=(1, 1, 1))
    )
    assert nsd(small, large, spacing_mm=(1, 1, 1), tolerance_mm=4) == pytest.approx(1.0)
    assert nsd(small, large, spacing_mm=(1, 1, 1), tolerance_mm=2) < 0.1
    assert nsd(small, small, spacing_mm=(1, 1, 1), tolerance_mm=0.5) == 1.0


def test_empty_masks_follow_the_stated_rule():
    a, b = np.zeros((5, 5, 5), bool), np.zeros((5, 5, 5), bool)
    size = {"spacing_mm": SPACING}
    assert (dsc(a, b), nsd(a, b, **size), hd95(a, b, **size), lesions(a, b)) == (1.0, 1.0, 0.0, (0, 0, 0))
    b[2, 2, 2] = True
    for one, two in ((a, b), (b, a)):
        assert dsc(one, two) == nsd(one, two, **size) == 0.0 and math.isnan(hd95(one, two, **size))
    assert lesions(a, b) == (0, 1, 0) and lesions(b, a) == (0, 0, 1)


def test_lesions_are_counted_by_touch():
    truth, found = np.zeros((20, 20, 20), bool), np.zeros((20, 20, 20), bool)
    truth[1:4, 1:4, 1:4] = truth[10:13, 10:13, 10:13] = True
    truth[13, 13, 13] = True  # joined by a corner: the same lesion
    truth[18, 18, 18] = True
    found[3:5, 3:5, 3:5] = found[12, 12, 12] = found[17, 2, 2] = True
    assert lesions(found, truth) == (2, 3, 1)
