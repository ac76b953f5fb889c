"""Shifts: each does to known objects what its formula says, and only that."""

import itertools
import json

import numpy as np
import pytest
import torch
from monai.data.dataloader import DataLoader
from monai.data.dataset import Dataset
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose

from ctssl.cli.main import main
from ctssl.datasets.layouts import find_cases
from ctssl.finetuning.prepare import prepare_cases
from ctssl.lint import ScanWarning
from ctssl.phantom import phantom
from ctssl.shifts import REVISION, SHIFTS, contrast, dose, kernel, shift, shift_all, streaks, thickness
from ctssl.shifts.beam import VIEWS, WATER, Beam, held
from ctssl.shifts.beam import kernel as ramp
from ctssl.shifts.copies import shifted_copies
from ctssl.shifts.transform import ShiftTransform
from ctssl.volume.volume import Volume
from ctssl.zoo import Preprocess


def scan(array, spacing=(1.0, 1.0, 2.0)) -> Volume:
    return Volume(np.asarray(array, np.float32), np.diag([*spacing, 1.0]), "made")


def cylinder(radius_mm=100.0, *, slices=6, spacing=(2.0, 2.0, 5.0), hu=0.0) -> Volume:
    """A round body of water in air."""
    sizes = [int(2.4 * radius_mm / s) for s in spacing[:2]]
    x, y = ((np.arange(n) - (n - 1) / 2) * s for n, s in zip(sizes, spacing, strict=False))
    inside = np.hypot(x[:, None], y[None]) <= radius_mm
    return scan(np.repeat(np.where(inside, hu, -1000.0)[..., None], slices, 2), spacing)


@pytest.fixture(scope="module")
def chest() -> Volume:
    whole = phantom(4.0)[0]
    return Volume(np.ascontiguousarray(whole.array[:, :, 18:42]), whole.affine, "chest")


@pytest.mark.parametrize("name", SHIFTS)
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


@pytest.mark.parametrize("name", SHIFTS)
def test_severities_are_graded(name, chest):
    away = [np.abs(shift(chest, name, severity=s).array - chest.array).mean() for s in (1, 2, 3, 4, 5)]
    if name == "thickness":  # the first slabs are no thicker than the phantom's slices
        assert away[0] == away[1] == 0
        away = away[2:]
    assert all(a < b for a, b in itertools.pairwise(away)), away


@pytest.mark.parametrize("name", SHIFTS)
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
    with pytest.raises(ValueError, match="there are contrast, dose, streaks, kernel_sharp"):
        shift(chest, "blur")
    for severity in (0, 6, 2.5):
        with pytest.raises(ValueError, match="there are 1, 2, 3, 4 and 5"):
            shift(chest, "dose", severity=severity)
    with pytest.raises(ValueError, match="from 0"):
        shift(chest, "dose", seed=-1)


def test_the_kernel_multiplies_the_mtf_of_an_edge_by_the_ratio():
    """Edge spread -> line spread -> MTF, of a smooth edge before and after, along x."""
    x = np.arange(128) - 63.5
    edge = scan(np.tile((100 * np.tanh(x / 2.0))[:, None, None], (1, 40, 3)), (0.8, 0.8, 3.0))
    f = np.fft.rfftfreq(63, 0.8)

    def mtf(volume):
        return np.abs(np.fft.rfft(np.diff(volume.array[32:96, 20, 1])))

    low = (f > 0.02) & (f < 0.3)
    for name, power in (("kernel_sharp", 1), ("kernel_smooth", -1)):
        found = mtf(shift(edge, name, severity=3))[low] / mtf(edge)[low]
        np.testing.assert_allclose(found, kernel.ratio(f[low], kernel.SEVERITIES[3]) ** power, rtol=0.02)


def test_the_kernel_shapes_noise_by_the_ratio_and_leaves_the_axis_of_the_patient():
    noise = scan(np.random.default_rng(0).normal(0, 10, (128, 128, 30)), (0.8, 0.8, 1.0))
    found = shift(noise, "kernel_sharp", severity=4)
    before, after = (np.square(np.abs(np.fft.fft2(v.array, axes=(0, 1)))).mean(2) for v in (noise, found))
    f = np.hypot(np.fft.fftfreq(128, 0.8)[:, None], np.fft.fftfreq(128, 0.8)[None])
    for low, high in ((0.1, 0.15), (0.3, 0.35), (0.5, 0.55)):
        ring = (f > low) & (f < high)
        wanted = kernel.ratio(np.array((low + high) / 2), kernel.SEVERITIES[4]) ** 2
        assert after[ring].mean() / before[ring].mean() == pytest.approx(wanted, rel=0.06)
    along = np.corrcoef(found.array[:, :, :-1].ravel(), found.array[:, :, 1:].ravel())[0, 1]
    assert abs(along) < 0.01
    assert kernel.ratio(np.array(50.0), 4.0) < kernel.GAIN
    assert kernel.ratio(np.array(kernel.REFERENCE), 1.0) == pytest.approx(2.0, abs=0.02)


def test_sharper_and_smoother_again_is_the_scan():
    smooth = scan(np.random.default_rng(0).normal(0, 20, (64, 64, 4)))
    there = shift(smooth, "kernel_sharp", severity=3)
    inner = np.s_[16:-16, 16:-16]
    back = shift(there, "kernel_smooth", severity=3)
    assert np.abs(back.array - smooth.array)[inner].max() < 0.5


def test_what_lies_outside_the_field_of_view_stays(chest):
    padded = chest.array.copy()
    padded[:3] = -3024.0
    for name in ("kernel_sharp", "dose", "streaks"):
        found = shift(Volume(padded, chest.affine), name, severity=5).array
        assert (found[:3] == -3024.0).all() and found[3:].min() >= -1024.0


def test_a_thin_sheet_takes_the_profile_of_the_slab():
    """One slice of 1 mm at 600 HU in slabs of 5 mm: 600 / 5 in the middle, falling off over a pitch on each side."""
    weights = thickness.slabs(40, 1.0, 5.0, 0.0, start_mm=0.0)
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-5)
    answer = weights[:, 22]  # slice 22 lies in the slab 20..25 mm, middle 22.5 mm
    middles = np.arange(40) + 0.5
    np.testing.assert_allclose(answer, np.maximum(0, 1 - np.abs(middles - 22.5) / 5) / 5, atol=1e-6)
    gap = thickness.slabs(48, 1.0, 5.0, 3.0, start_mm=0.0)[
        :, 18
    ]  # in the slab 16..21 mm, middle 18.5 mm, the next 8 mm away
    np.testing.assert_allclose(gap, np.maximum(0, 1 - np.abs(np.arange(48) + 0.5 - 18.5) / 8) / 5, atol=1e-6)
    skipped = thickness.slabs(48, 1.0, 10.0, 2.0, start_mm=0.0)[:, 10:12]  # in the gap: seen by no slab
    assert np.abs(skipped).max() == 0


def test_averaging_slices_lowers_noise_as_their_root():
    noise = scan(np.random.default_rng(0).normal(0, 20, (64, 64, 40)), (1.0, 1.0, 1.0))
    for count in (3, 5, 10):
        slabs = thickness.slabs(40, 1.0, float(count), 0.0, start_mm=0.0)
        middle = 4 * count // count * count + count // 2 if count == 3 else 2 * count + count // 2
        found = (noise.array @ slabs.T)[..., middle if count % 2 else middle - 1]
        if count % 2:
            assert found.std() == pytest.approx(20 / np.sqrt(count), rel=0.05)
        else:  # between the middles of slabs when these fall between slices: a twentieth of the next one
            assert found.std() == pytest.approx(20 / np.sqrt(count) * np.hypot(0.95, 0.05), rel=0.05)
    thick = scan(noise.array, (1.0, 1.0, 5.0))
    assert np.array_equal(shift(thick, "thickness", severity=3).array, thick.array)


def test_a_line_integral_is_the_chord_and_backprojection_inverts_it():
    body = cylinder(60.0, slices=1)
    beam = Beam(body.shape[:2], body.spacing_mm[:2])
    inside = (body.array > -500).astype(np.float32)
    sinogram = beam.project(inside)
    place = (np.arange(beam.bins) - (beam.bins - 1) / 2) * beam.bin_mm
    chord = 2 * np.sqrt(np.maximum(60.0**2 - place**2, 0))
    for view in (0, VIEWS // 3, VIEWS // 2):
        assert np.abs(sinogram[view, :, 0] - chord)[np.abs(place) < 50].max() < 6
    found = beam.backproject(sinogram)[..., 0]
    middle = np.s_[body.shape[0] // 2 - 10 : body.shape[0] // 2 + 10]
    assert found[middle, middle].mean() == pytest.approx(1.0, abs=0.05)


def test_the_noise_of_a_dose_is_what_the_dose_says():
    body = cylinder(100.0, slices=16)
    middle = np.s_[body.shape[0] // 2 - 12 : body.shape[0] // 2 + 12]
    variance = {
        s: (shift(body, "dose", severity=s).array - body.array)[middle, middle].var() for s in range(1, 6)
    }
    for s in range(2, 6):  # the electronics' noise joins at the lowest dose
        wanted = (1 / dose.SEVERITIES[s] - 1) / (1 / dose.SEVERITIES[1] - 1)
        assert 0.94 < variance[s] / variance[1] / wanted < 1.12
    thin = cylinder(100.0, slices=16, spacing=(2.0, 2.0, 1.25))
    assert (shift(thin, "dose", severity=2).array - thin.array)[middle, middle].var() / variance[
        2
    ] == pytest.approx(4.0, rel=0.12)


def test_the_reference_protocol_has_the_noise_that_is_stated():
    """9 HU in 300 mm of water, pixels of 0.7 mm, slices of 5 mm; half the dose adds as much variance as there was."""
    body = cylinder(150.0, slices=3, spacing=(0.71, 0.71, 5.0))
    middle = np.s_[body.shape[0] // 2 - 30 : body.shape[0] // 2 + 30]
    added = (shift(body, "dose", severity=2).array - body.array)[middle, middle]
    assert added.std() == pytest.approx(9.0, rel=0.1)


@pytest.mark.parametrize("name", ["dose", "streaks"])
def test_the_noise_does_not_depend_on_pixels(name):
    """The same body on finer and coarser pixels, but for what coarse ones cannot hold; and wider than 512 of them."""

    def added(spacing, air=0):
        body = cylinder(60.0, slices=3, spacing=(*spacing, 5.0))
        body = Volume(
            np.pad(body.array, [(air, air), (air, air), (0, 0)], constant_values=-1000), body.affine
        )
        middle = tuple(
            np.s_[n // 2 - int(20 / s) : n // 2 + int(20 / s)]
            for n, s in zip(body.shape, spacing, strict=False)
        )
        return (shift(body, name, severity=3).array - body.array)[middle].std()

    fine = added((0.7, 0.7))
    assert added((1.0, 1.0)) / fine == pytest.approx(np.sqrt(held(1.0)), rel=0.1)
    assert added((1.6, 1.6)) / fine == pytest.approx(np.sqrt(held(1.6)), rel=0.15)
    assert added((1.0, 0.7)) / fine == pytest.approx(np.sqrt(held(1.0)), rel=0.15)
    assert added((0.7, 0.7), air=170) / fine == pytest.approx(1.0, rel=0.15)


@pytest.mark.parametrize("name, severity", [("dose", 1), ("dose", 3), ("streaks", 3)])
def test_the_noise_in_the_middle_of_a_large_body_is_the_one_of_theory(name, severity):
    """White noise of each reading, through the ramp and back: the sum over views of its power. So dense that the electronics'
    part shows; sampling adds some percent."""
    body, bin_mm = cylinder(250.0, slices=3), 2.0
    if name == "dose":
        left, area = dose.SEVERITIES[severity], bin_mm * 5.0 / VIEWS
        photons = left * dose.FLUENCE * area * np.exp(-WATER * 500.0)
        deviation = np.sqrt((1 - left) * photons + (1 - left**2) * dose.ELECTRONIC * area) / photons
    else:
        deviation = streaks.SEVERITIES[severity] / np.sqrt(bin_mm)  # the middle is the darkest percent
    f = np.linspace(0, 0.5 / bin_mm, 2001)
    power = 2 * np.square(ramp(f)).mean() * f[-1] * bin_mm
    wanted = deviation * np.pi / np.sqrt(VIEWS) * np.sqrt(power) * 1000 / WATER
    middle = np.s_[body.shape[0] // 2 - 8 : body.shape[0] // 2 + 8]
    found = (shift(body, name, severity=severity).array - body.array)[middle, middle].std()
    assert 0.97 < found / wanted < 1.15


def test_readings_deviate_as_the_severity_says():
    """Small noise on a signal is the same noise on its logarithm; a reading without signal is no infinity."""
    rng = np.random.default_rng(0)
    for wanted in (0.005, 0.02, 0.08):
        assert dose.log_noise(np.full(200_000, wanted, np.float32), rng).std() == pytest.approx(
            wanted, rel=0.02
        )
    assert np.isfinite(dose.log_noise(np.full(1000, 50.0, np.float32), rng)).all()


def test_the_perfusion_is_smooth_around_one():
    field = contrast.perfusion((60, 50, 40), np.random.default_rng(0))
    assert field.shape == (60, 50, 40) and field.mean() == pytest.approx(1.0, abs=0.05)
    assert 0.2 <= field.min() < 0.8 and 1.2 < field.max() <= 1.8
    steps = [np.abs(np.diff(field, axis=axis)).max() for axis in range(3)]  # 2 mm apart
    assert max(steps) < 0.15


def test_a_noisy_scan_gets_noise_by_its_own():
    """Half the dose doubles the variance: as much again is added as there was."""
    body = cylinder(100.0, slices=16, hu=40.0)
    noisy = Volume(
        body.array + np.random.default_rng(0).normal(0, 25, body.shape).astype(np.float32), body.affine
    )
    assert dose.own_noise(noisy)[0] == pytest.approx(25, rel=0.03) and dose.own_noise(body)[0] == 0
    inside = body.array > 0
    for severity, times in ((2, 1.0), (3, 3.0)):
        added = (shift(noisy, "dose", severity=severity).array - noisy.array)[inside]
        assert added.var() / 25**2 == pytest.approx(times, rel=0.08)


def test_the_noise_is_stronger_in_large_bodies_and_behind_bone_and_it_is_correlated():
    small, large = (cylinder(r, slices=8) for r in (60.0, 140.0))
    deviation = []
    for body in (small, large):
        middle = np.s_[body.shape[0] // 2 - 8 : body.shape[0] // 2 + 8]
        deviation.append((shift(body, "dose", severity=3).array - body.array)[middle, middle].std())
    expected = np.exp(0.0192 * (280 - 120) / 2)  # half the difference of the line integrals
    assert deviation[1] / deviation[0] == pytest.approx(expected, rel=0.15)

    n = large.shape[0]
    boned = large.array.copy()
    for left in (n // 2 - 45, n // 2 + 30):
        boned[left : left + 15, n // 2 - 7 : n // 2 + 7] = (
            1500.0  # two bones: the rays through both lie between them
        )
    boned = Volume(boned, large.affine)
    noise = [shift(v, "dose", severity=3, seed=1).array - v.array for v in (large, boned)]
    between = np.s_[n // 2 - 10 : n // 2 + 10, n // 2 - 3 : n // 2 + 3]
    assert noise[1][between].std() > 1.15 * noise[0][between].std()

    patch = noise[1][between]
    along = np.corrcoef(patch[:-3].ravel(), patch[3:].ravel())[0, 1]
    across = np.corrcoef(patch[:, :-3].ravel(), patch[:, 3:].ravel())[0, 1]
    assert along > 0.15 and along > across + 0.1, (along, across)  # streaks from bone to bone


def test_streaks_lie_where_the_attenuation_is():
    n = 100
    array = np.full((n, 60, 4), -1000.0)
    array[5:95, 10:50] = 0.0  # as shoulders: 180 mm one way, 80 the other
    body = scan(array, (2.0, 2.0, 4.0))
    streaks = shift(body, "streaks", severity=4).array - body.array
    patch = streaks[30:70, 15:45]
    along = np.corrcoef(patch[:-2].ravel(), patch[2:].ravel())[0, 1]
    across = np.corrcoef(patch[:, :-2].ravel(), patch[:, 2:].ravel())[0, 1]
    assert along > 0.15 and along > across + 0.15, (along, across)


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
    with pytest.raises(ValueError, match="no shift is called"):
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


@pytest.mark.parametrize("name", SHIFTS)
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
    for wrong, words in (({"names": ()}, "no shift to draw from"), ({"prob": 2.0}, "from 0 to 1")):
        with pytest.raises(ValueError, match=words):
            ShiftTransform(**wrong)
    with pytest.raises(ValueError, match="has no scan; it has image"):
        ShiftTransform("dose", keys=("scan",))({"image": image})


def test_as_a_monai_transform(chest):
    image = MetaTensor(torch.from_numpy(chest.array)[None], affine=torch.from_numpy(chest.affine))
    found = Compose([ShiftTransform("kernel_sharp", severity=3)])(image)
    assert (
        isinstance(found, MetaTensor)
        and found.shape == image.shape
        and torch.equal(found.affine, image.affine)
    )
    np.testing.assert_array_equal(found[0].numpy(), shift(chest, "kernel_sharp").array)
    both = ShiftTransform(("dose", "kernel_sharp"), keys=("image",), seed=5)
    label = torch.zeros(1)
    one, again = (
        both({"image": image, "label": label}),
        both.set_random_state(5)({"image": image, "label": label}),
    )
    assert (
        torch.equal(one["image"], again["image"])
        and one["label"] is label
        and not torch.equal(one["image"], image)
    )
    assert ShiftTransform("dose", prob=0.0)(image) is image
    with pytest.raises(ValueError, match="has no affine"):
        both({"image": torch.zeros(1, 4, 4, 4)})
    with pytest.raises(ValueError, match="no shift is called"):
        ShiftTransform("dsoe")
    with pytest.raises(ValueError, match="no severity 0"):
        ShiftTransform("dose", severity=0)


def test_monai_seeds_the_transform_of_every_worker(chest):
    """Through `Compose`, as its `DataLoader` does it for each worker and epoch."""
    image = MetaTensor(torch.from_numpy(chest.array)[None], affine=torch.from_numpy(chest.affine))
    chain = Compose([ShiftTransform(("kernel_sharp", "kernel_smooth", "thickness"))])
    found = []
    for seed in (1, 1, 2, 3, 4):
        chain.set_random_state(seed)
        found.append(chain(image))
    assert torch.equal(found[0], found[1]) and any(not torch.equal(found[0], other) for other in found[2:])
    drawn = list(DataLoader(Dataset([image] * 4, chain), batch_size=1, num_workers=2))
    assert any(not torch.equal(drawn[0], other) for other in drawn[1:])


def test_shifted_copies_for_a_training(chest, labelled, tmp_path):
    one, two = (shifted_copies(chest, 2, seed=4) for _ in range(2))
    for a, b in zip(one, two, strict=True):
        assert np.array_equal(a.array, b.array) and not np.array_equal(a.array, chest.array)
    cases = find_cases(labelled).cases[:2]
    pairs, classes = prepare_cases(cases, Preprocess(), copies=2, seed=4, progress=False)
    assert len(pairs) == 6 and classes == 2
    for first in (0, 3):
        (image, label), *others = pairs[first : first + 3]
        assert all(other.shape == image.shape and not np.array_equal(other, image) for other, _ in others)
        assert all(mine is label for _, mine in others)
    args = ["--steps", "1", "--batch", "1", "--crop", "16", "--hold-out", "case2", "--shift-augment", "1"]
    assert main(["finetune", str(labelled), "--out", str(tmp_path / "m"), *args]) == 0
    assert json.loads((tmp_path / "m" / "report.json").read_text())["settings"]["shift_augment"] == 1


def test_the_kernel_shift_brings_real_pairs_closer(data):
    """Both patients, each half of the body, both ways: with the shape from the other patient and the strength from unpaired
    slices, and with numbers of the pair in the other half. The strength of the other pair, whose kernels lie elsewhere, brings
    the Philips pair closer and the Siemens pair apart."""
    from training.experiments import shifts_proof

    result = shifts_proof.prove()
    kept = json.loads((shifts_proof.RESULTS / "shifts_proof.json").read_text())
    for patient, entry in result["patients"].items():
        for half, part in entry["halves"].items():
            for way, found in part["ways"].items():
                measured = kept["patients"][patient]["halves"][half]["ways"][way]
                for direction in ("to sharp", "to smooth"):
                    left = {key: after / part["before"][key] for key, after in found[direction].items()}
                    where = (patient, half, way, direction, left)
                    if way == "other patient":
                        assert [share < 1 for share in left.values()] == [patient.startswith("A0001")] * 3, (
                            where
                        )
                    elif way in ("unpaired", "own"):
                        assert left["nps"] < 0.5 and left["skin"] < 0.6 and left["lung"] < 0.95, where
                    else:
                        assert left["nps"] < 0.75 and left["skin"] < 0.8 and left["lung"] < 1.05, where
                    assert found[direction] == pytest.approx(measured[direction], rel=0.02)
    assert (shifts_proof.RESULTS / "shifts_proof.md").read_text() == shifts_proof.table(kept)


def test_the_strength_between_unpaired_slices_is_the_one_that_was_applied():
    """Of noise of which each half is drawn anew: sharper, smoother and the same."""
    from training.experiments.shifts_proof import unpaired

    rng = np.random.default_rng(0)
    one, other = (scan(rng.normal(0, 10, (128, 128, 40)), (1.5, 1.5, 5.0)) for _ in range(2))
    assert abs(unpaired(one, other, 2.0)) < 0.05
    for severity in (2, 4):
        wanted = kernel.SEVERITIES[severity]
        assert unpaired(one, shift(other, "kernel_sharp", severity=severity), 2.0) == pytest.approx(
            wanted, rel=0.1
        )
        assert unpaired(one, shift(other, "kernel_smooth", severity=severity), 2.0) == pytest.approx(
            -wanted, rel=0.1
        )
