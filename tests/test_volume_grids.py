"""Moving between grids, against shapes whose place in millimetres is known."""

import itertools

import nibabel
import numpy as np
import pytest

import ctssl
from ctssl.inference.masks import onto
from ctssl.volume.grids import prepare, resample, working_grid
from ctssl.volume.volume import Volume
from ctssl.zoo import Preprocess

CENTRE, RADII = (
    np.array([12.0, -20.0, 30.0]),
    np.array([22.0, 14.0, 30.0]),
)  # mm; an ellipsoid without symmetry in space


def ellipsoid(shape, affine) -> np.ndarray:
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    place = index @ affine[:3, :3].T + affine[:3, 3]
    return (((place - CENTRE) / RADII) ** 2).sum(-1) <= 1


def grid_around(axes: np.ndarray, spacing) -> tuple[tuple[int, int, int], np.ndarray]:
    """A grid of about 120 mm along each of `axes` (columns, unit length), around the ellipsoid, off centre."""
    shape = tuple(int(np.ceil(s)) for s in 120 / np.array(spacing))
    affine = np.eye(4)
    affine[:3, :3] = axes * np.array(spacing)
    affine[:3, 3] = CENTRE - affine[:3, :3] @ (np.array(shape) / 2 + [1.3, -2.1, 0.4])
    return shape, affine


def turn(degrees: float, axis: int) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.insert(np.insert(np.array([[c, -s], [s, c]]), axis, 0, 0), axis, np.eye(3)[axis], 1)


SIGNED = [
    np.eye(3)[:, list(p)] * np.array(signs)
    for p in itertools.permutations(range(3))
    for signs in itertools.product((1, -1), repeat=3)
]


OBLIQUE = [turn(20, 0), turn(35, 2) @ turn(-15, 1), turn(44, 0) @ turn(30, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("spacing", [(1.5, 1.5, 1.5), (0.98, 0.98, 3.27), (3.0, 1.2, 2.0)])
@pytest.mark.parametrize("axes", [*SIGNED, *OBLIQUE], ids=[f"axes{i}" for i in range(51)])
def test_a_shape_goes_to_the_model_and_comes_back_within_a_voxel(axes, spacing):
    shape, affine = grid_around(axes, spacing)
    truth = ellipsoid(shape, affine)
    scan = Volume(np.where(truth, 60.0, -100.0).astype(np.float32), affine)
    there = prepare(scan, Preprocess())
    assert np.linalg.det(there.affine[:3, :3]) > 0 and (np.diag(there.affine[:3, :3]) > 0).all()  # RAS+
    np.testing.assert_allclose(there.spacing_mm, 2.0)
    expected = ellipsoid(there.shape, there.affine)
    inside = there.array > 0.48  # between fat (0.40) and tumour (0.56)
    assert wrong_beyond_a_voxel(inside, expected) == 0
    back = onto(np.stack([~inside, inside]).astype(np.float32), there.affine, scan)
    assert back.shape == shape
    coarse = max(1, round(2.0 / min(spacing)))  # the working grid's voxel, in voxels of the scan
    assert wrong_beyond_a_voxel(back > 0, truth, voxels=coarse) == 0


def wrong_beyond_a_voxel(found: np.ndarray, truth: np.ndarray, voxels: int = 1) -> int:
    from scipy.ndimage import binary_dilation, binary_erosion

    cube = np.ones((3, 3, 3), bool)
    return int(
        (found & ~binary_dilation(truth, cube, voxels)).sum()
        + (binary_erosion(truth, cube, voxels) & ~found).sum()
    )


def test_a_sheared_scan_is_resampled_not_ignored(data):

    path = data / "geometry" / "shear_head.nii.gz"
    scan = ctssl.read(path)
    axes = scan.affine[:3, :3] / np.linalg.norm(scan.affine[:3, :3], axis=0)
    assert np.abs(axes.T @ axes - np.eye(3)).max() > 0.05, "the file is sheared"
    there = prepare(scan, Preprocess())
    square = there.affine[:3, :3] / 2.0
    np.testing.assert_allclose(square.T @ square, np.eye(3), atol=1e-9)
    # the oracle: values of the file at the millimetre places of some voxels of the result
    raw = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
    rng = np.random.default_rng(0)
    errors = []
    for _ in range(400):
        voxel = np.array([rng.integers(5, n - 5) for n in there.shape])
        place = there.affine @ [*voxel, 1]
        old = (np.linalg.inv(nibabel.load(path).affine) @ place)[:3]
        if (old < 2).any() or (old > np.array(raw.shape) - 3).any():
            continue
        i, j, k = np.round(old).astype(int)
        near = np.clip((raw[i - 1 : i + 2, j - 1 : j + 2, k - 1 : k + 2] + 500) / 1000, 0, 1)
        value = there.array[tuple(voxel)]
        errors.append(max(0.0, near.min() - value, value - near.max()))
    assert len(errors) > 100 and np.mean(errors) < 0.02


def test_a_sheared_shape_lands_where_it_is_in_millimetres():
    axes = np.eye(3)
    axes[:, 2] = [0.0, -0.3, 0.954]
    shape, affine = grid_around(axes, (1.0, 1.0, 2.5))
    scan = Volume(np.where(ellipsoid(shape, affine), 60.0, -100.0).astype(np.float32), affine)
    there = prepare(scan, Preprocess())
    known = resample(np.ones(shape, np.float32), affine, there.shape, there.affine) > 0.5
    expected = ellipsoid(there.shape, there.affine)
    inside = there.array > 0.48
    assert wrong_beyond_a_voxel(inside & known, expected) == 0
    back = onto(np.stack([~inside, inside]).astype(np.float32), there.affine, scan)
    assert wrong_beyond_a_voxel(back > 0, ellipsoid(shape, affine), voxels=2) == 0


def test_resampling_averages_when_the_new_grid_is_coarser():
    rng = np.random.default_rng(0)
    array = rng.normal(size=(40, 40, 40)).astype(np.float32)
    coarse = resample(array, np.eye(4), (10, 10, 10), np.diag([4.0, 4.0, 4.0, 1.0]))
    assert coarse.std() < 0.35  # 64 voxels averaged; picking single ones would keep a deviation of 1


def test_prepare_maps_the_window_to_0_and_1():
    hu = np.full((20, 20, 20), -1000.0, np.float32)
    hu[5:15] = 0.0
    hu[15:] = 3000.0
    there = prepare(Volume(hu, np.diag([2.0, 2.0, 2.0, 1.0])), Preprocess())
    assert there.array.dtype == np.float32
    np.testing.assert_allclose(
        [there.array[1, 1, 1], there.array[10, 1, 1], there.array[18, 1, 1]], [0.0, 0.5, 1.0]
    )


@pytest.mark.parametrize("spacing_mm", [0.7, 2.0, 11.0])
def test_the_working_grid_covers_the_scan(spacing_mm):
    shape, affine = grid_around(OBLIQUE[0], (1.1, 0.9, 4.0))
    new_shape, new_affine = working_grid(Volume(np.zeros(shape, np.float32), affine), spacing_mm)
    for old, new in ((shape, new_shape),):
        middle_old = affine @ [*((np.array(old) - 1) / 2), 1]
        middle_new = new_affine @ [*((np.array(new) - 1) / 2), 1]
        np.testing.assert_allclose(middle_old, middle_new, atol=1e-9)
    extent_old = np.sort(np.array(shape) * [1.1, 0.9, 4.0])
    np.testing.assert_allclose(
        np.sort(np.array(new_shape) * spacing_mm), extent_old, atol=spacing_mm / 2 + 1e-6
    )


@pytest.mark.parametrize("shear", [0.0, 0.2])
@pytest.mark.parametrize("spacing", [1.5, 2.0, 4.0])
def test_a_mask_reaches_to_the_borders_of_its_scan(shear, spacing):
    affine = np.diag([0.482, 0.482, 2.37, 1.0])
    affine[1, 2] = shear
    scan = Volume(np.full((306, 200, 54), 40, np.float32), affine)
    shape, grid = working_grid(scan, spacing)
    everywhere = np.stack([np.zeros(shape), np.ones(shape)]).astype(np.float16)
    assert (onto(everywhere, grid, scan, 8) == 1).all()
    there = prepare(scan, Preprocess(spacing, (-200.0, 200.0))).array
    if shear == 0:
        assert there.min() == pytest.approx(0.6)


@pytest.mark.parametrize("degrees", [1, 20, 45])
def test_a_turned_coarser_grid_averages_as_much_as_a_straight_one(degrees):
    noise = np.random.default_rng(0).standard_normal((60, 60, 60)).astype(np.float32)

    def spread(angle: float) -> float:
        turn = np.eye(4)
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        turn[:2, :2] = [[c, -s], [s, c]]
        to = turn @ np.diag([4.0, 4.0, 4.0, 1.0])
        to[:3, 3] = 30 - to[:3, :3] @ np.full(3, 4.0)
        return float(resample(noise, np.eye(4), (9, 9, 9), to)[2:7, 2:7, 2:7].std())

    assert spread(degrees) == pytest.approx(spread(0.0), rel=0.15)
