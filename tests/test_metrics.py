"""The Dice coefficient against numbers worked by hand."""

import numpy as np
import pytest

from ctssl.metrics import dsc


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
