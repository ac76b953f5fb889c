"""Where a crop lies, how it is turned and what is done to its intensities."""

import numpy as np
import pytest

import ctssl
from ctssl import sampling
from ctssl.finetuning import crops


def test_intensity_changes_stay_in_the_window_and_come_by_chance():
    image = np.random.default_rng(0).random((16, 16, 16)).astype(np.float32)
    assert sampling.degrade(image, np.random.default_rng(0), chance=0.0) is image
    found = [sampling.degrade(image, np.random.default_rng(seed), chance=1.0) for seed in range(8)]
    assert all(one.shape == image.shape and one.min() >= 0 and one.max() <= 1 for one in found)
    assert min(np.abs(one - image).mean() for one in found) > 0.01
    some = sum(
        sampling.degrade(image, np.random.default_rng(seed), chance=0.15) is image for seed in range(200)
    )
    assert pytest.approx(some, abs=25) == 200 * 0.85**4  # left alone


def test_a_small_scan_lies_anywhere_in_the_crop_and_a_trimmed_one_keeps_its_tumour():
    rng = np.random.default_rng(0)
    starts = np.array([sampling.random_placement((10, 30, 16), 16, rng) for _ in range(400)])
    assert [(c.min(), c.max()) for c in starts.T] == [(-6, 0), (0, 14), (0, 0)]
    around = (3, 29, 7)
    for _ in range(100):
        start = sampling.random_placement((10, 30, 16), 16, rng, around)
        assert all(s <= c < s + 16 for s, c in zip(start, around, strict=True))
        box = sampling.random_part((10, 30, 16), rng, around)
        assert all(
            part.start <= c < part.stop <= n for part, c, n in zip(box, around, (10, 30, 16), strict=True)
        )
    sizes = np.array(
        [[part.stop - part.start for part in sampling.random_part((40, 40, 40), rng)] for _ in range(300)]
    )
    assert sizes.min() == 20 and sizes.max() == 40
    image = np.ones((16, 16, 16), np.float32)  # what is trimmed off is air, as outside a scan
    settings = ctssl.Settings(batch=1, crop=16, intensity=0.0, trim=1.0, warp=0.0, degrade=0.0)
    one, _ = crops.augmented(image[None], image.astype(np.uint8), settings, rng)
    assert 16**3 / 8 <= one.sum() < 16**3


def test_turned_cubes_are_the_voxels_that_they_should_be():
    array = np.random.default_rng(0).random((24, 24, 24)).astype(np.float32)
    centre, size = np.array([11.5, 11.5, 11.5]), 12
    inside = array[6:18, 6:18, 6:18]
    (same,) = sampling.warp((array,), centre, size, np.eye(3), orders=(1,))
    np.testing.assert_allclose(same, inside, atol=1e-6)
    quarter = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    (turned,) = sampling.warp((array,), centre, size, quarter, orders=(1,))
    np.testing.assert_allclose(turned, np.rot90(inside, -1, axes=(0, 1)), atol=1e-5)
    for seed in range(5):
        matrix = sampling.random_matrix(np.random.default_rng(seed), degrees=20, zoom=1.3)
        scale = np.cbrt(np.linalg.det(matrix))
        np.testing.assert_allclose(matrix @ matrix.T, scale**2 * np.eye(3), atol=1e-9)
        assert 1 / 1.3 <= scale <= 1.3
