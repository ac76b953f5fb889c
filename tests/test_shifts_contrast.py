"""Contrast medium: where it goes, and how much."""

import numpy as np
import pytest

from ctssl.shifts import contrast, shift
from tests.support.bodies import scan


def test_the_perfusion_is_smooth_around_one():
    field = contrast.perfusion((60, 50, 40), np.random.default_rng(0))
    assert field.shape == (60, 50, 40) and field.mean() == pytest.approx(1.0, abs=0.05)
    assert 0.2 <= field.min() < 0.8 and 1.2 < field.max() <= 1.8
    steps = [np.abs(np.diff(field, axis=axis)).max() for axis in range(3)]  # 2 mm apart
    assert max(steps) < 0.15


def test_noise_does_not_decide_what_takes_iodine():
    x = np.hypot(*np.meshgrid(np.arange(64) - 31.5, np.arange(64) - 31.5, indexing="ij"))
    array = np.repeat(np.where(x <= 6, 45.0, -90.0)[..., None], 24, axis=2)
    noisy = scan(array + np.random.default_rng(0).normal(0, 40, array.shape), (0.8, 0.8, 2.0))
    rise = (shift(noisy, "contrast", severity=5).array - noisy.array)[x <= 3]
    assert rise.mean() > 200 and np.percentile(rise, 1) > 0.6 * rise.mean(), (
        rise.mean(),
        np.percentile(rise, 1),
    )


def test_contrast_raises_vessels_and_neither_bone_nor_air():
    array = np.full((60, 60, 40), -90.0)  # fat
    x, y = np.meshgrid(np.arange(60) - 20.0, np.arange(60) - 30.0, indexing="ij")
    vessel, bone = np.hypot(x, y) <= 4, np.hypot(x - 22, y) <= 6
    array[vessel], array[bone], array[:, :6] = 45.0, 700.0, -1000.0
    volume = scan(array, (1.0, 1.0, 1.0))
    core = np.hypot(x, y) <= 2
    rise = [(shift(volume, "contrast", severity=s).array - array) for s in (2, 5)]
    assert rise[1][core].mean() > 0.5 * 300 and rise[0][core].mean() == pytest.approx(
        rise[1][core].mean() / 3, rel=0.01
    )
    for away in rise:
        assert np.abs(away[bone]).max() == np.abs(away[:, :6]).max() == 0
        assert np.abs(away[array == -90.0]).max() == 0
    muscle = scan(np.full((40, 40, 30), 55.0), (2.0, 2.0, 2.0))
    rise = shift(muscle, "contrast", severity=5).array - 55.0
    assert rise.mean() == pytest.approx(0.12 * 300, rel=0.1)  # of tissue: 12 % of what vessels take
    low, high = (
        contrast.enhance(volume, 3, np.random.default_rng(0), kvp=k) - volume.array for k in (80, 140)
    )
    np.testing.assert_allclose(low[core] / high[core], 40 / 21, rtol=1e-3)
    with pytest.raises(ValueError, match=r"\[80, 100, 120, 140\]"):
        contrast.enhance(volume, 3, np.random.default_rng(0), kvp=90)
