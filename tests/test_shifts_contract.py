"""What every shift keeps to: exact for a seed, graded, along the axis of the patient, refused where it cannot be."""

import itertools

import numpy as np
import pytest
import torch
from monai.data.meta_tensor import MetaTensor

from ctssl.scan_checks import ScanWarning
from ctssl.shifts import REVISION, SHIFTS, shift, shift_all
from ctssl.shifts.transform import ShiftTransform
from ctssl.volume.volume import Volume

NAMES = [pytest.param(name, marks=pytest.mark.slow) if name == "contrast" else name for name in SHIFTS]


@pytest.mark.parametrize("name", NAMES)
def test_every_shift_is_exact_for_a_seed_and_keeps_its_input(name, chest):
    before = chest.array.copy()
    one, two, other = (shift(chest, name, severity=4, seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(chest.array, before)
    assert (
        one.array.dtype == np.float32
        and one.shape == chest.shape
        and np.array_equal(one.affine, chest.affine)
    )
    assert np.array_equal(one.array, two.array) and np.isfinite(one.array).all()
    assert np.array_equal(one.array, other.array) == (name in ("kernel_sharp", "kernel_smooth", "truncation"))
    assert not np.array_equal(one.array, before) and not np.shares_memory(one.array, chest.array)


@pytest.mark.parametrize("name", NAMES)
def test_severities_are_graded(name, chest):
    away = [np.abs(shift(chest, name, severity=s).array - chest.array).mean() for s in (1, 2, 3, 4, 5)]
    if name == "thickness":  # the first slabs are no thicker than the phantom's slices
        assert away[0] == away[1] == 0
        away = away[2:]
    assert all(a < b for a, b in itertools.pairwise(away)), away


@pytest.mark.parametrize("name", NAMES)
def test_the_axial_axis_comes_from_the_affine(name, chest):
    """The same scan stored with other axes, turned over, is shifted to the same scan."""
    order, flipped = (2, 0, 1), 1
    steps = np.zeros((4, 4))
    steps[list(order), range(3)] = 1.0
    steps[:3, flipped] *= -1
    steps[order[flipped], 3] = chest.shape[order[flipped]] - 1
    steps[3, 3] = 1.0
    stored = Volume(np.flip(chest.array.transpose(order), flipped), chest.affine @ steps)
    found = shift(stored, name, severity=5, seed=3)
    wanted = shift(chest, name, severity=5, seed=3)
    np.testing.assert_array_equal(found.array, np.flip(wanted.array.transpose(order), flipped))
    assert np.array_equal(found.affine, stored.affine)


def test_what_does_not_exist_is_said(chest):
    with pytest.raises(ValueError, match="use contrast, dose, streaks, kernel_sharp"):
        shift(chest, "blur")
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="use 1, 2, 3, 4 or 5"):
            shift(chest, "dose", severity=severity)
    with pytest.raises(ValueError, match="from 0"):
        shift(chest, "dose", seed=-1)


def test_what_lies_outside_the_field_of_view_stays(chest):
    padded = chest.array.copy()
    padded[:3] = -3024.0
    for name in ("kernel_sharp", "dose", "streaks"):
        found = shift(Volume(padded, chest.affine), name, severity=5).array
        assert (found[:3] == -3024.0).all() and found[3:].min() >= -1024.0


def test_truncation_leaves_the_inside_as_it_is(chest):
    found = shift(chest, "truncation", severity=4).array
    same = found == chest.array
    assert (found[~same] == -1024.0).all() and 0.1 < (~same & (chest.array > -500)).sum() / (
        chest.array > -500
    ).sum() < 0.7
    middle = tuple(slice(n // 2 - n // 8, n // 2 + n // 8) for n in chest.shape)
    assert same[middle].all()


def test_several_shifts_come_in_physical_order(chest):
    found = shift_all(chest, {"thickness": 4, "dose": 3}, seed=2)
    wanted = shift(shift(chest, "dose", severity=3, seed=2), "thickness", severity=4, seed=2)
    assert np.array_equal(found.array, wanted.array)
    with pytest.raises(ValueError, match="unknown shift"):
        shift_all(chest, {"dsoe": 1})


CHANGES = {
    "contrast": (16.0469, -2.7726),
    "dose": (22.3801, -4.9333),
    "streaks": (4.6036, -1.1669),
    "kernel_sharp": (25.0531, 4.8621),
    "kernel_smooth": (22.077, -0.2405),
    "thickness": (64.7717, -14.1293),
    "truncation": (440.7271, -92.5222),
}
"""Of the phantom's chest at severity 4 and seed 0: root mean square change in HU, and the sum of the change times a wave over the
voxels, which changes with the noise that is drawn."""


@pytest.mark.parametrize("name", NAMES)
def test_what_a_shift_does_changes_with_the_revision_alone(name, chest):
    """If this fails, `ctssl.shifts.REVISION` has to be raised too, or what was measured before is taken for measured now."""
    change = shift(chest, name, severity=4).array.astype(float) - chest.array
    size = np.sqrt(np.mean(change**2))
    wave = (change.ravel() * np.sin(np.arange(change.size))).sum() / np.sqrt(change.size)
    assert REVISION == 3 and size == pytest.approx(CHANGES[name][0], rel=0.01), (size, wave)
    assert wave == pytest.approx(CHANGES[name][1], abs=0.02 * size), (size, wave)


def test_what_cannot_be_hu_is_refused(chest):
    scaled = Volume(np.clip((chest.array + 150) / 300, 0, 1), chest.affine)
    with pytest.raises(ValueError, match="already windowed to 0..1"):
        shift(scaled, "dose")
    tensor = MetaTensor(torch.from_numpy(scaled.array), affine=torch.from_numpy(chest.affine))
    with pytest.raises(ValueError, match="already windowed to 0..1"):
        ShiftTransform("truncation", severity=1)(tensor)
    with pytest.warns(ScanWarning, match="identity"):
        ShiftTransform("truncation", severity=1)(MetaTensor(torch.from_numpy(chest.array)))
    image = MetaTensor(torch.from_numpy(chest.array), affine=torch.from_numpy(chest.affine))
    alone = ShiftTransform("truncation", severity=1, keys="image")({"image": image})["image"]
    assert torch.equal(alone, ShiftTransform("truncation", severity=1)(image))
    for wrong, words in (({"names": ()}, "names is empty"), ({"prob": 2.0}, "must be 0 to 1")):
        with pytest.raises(ValueError, match=words):
            ShiftTransform(**wrong)
    with pytest.raises(ValueError, match="has no scan; it has image"):
        ShiftTransform("dose", keys=("scan",))({"image": image})
