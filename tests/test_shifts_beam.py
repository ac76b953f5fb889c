"""Noise from the physics of the beam: line integrals, dose, streaks."""

import numpy as np
import pytest

from ctssl.shifts import dose, shift, streaks
from ctssl.shifts.beam import VIEWS, WATER, Beam, power_share
from ctssl.shifts.beam import kernel as ramp
from ctssl.volume.volume import Volume
from tests.support.bodies import cylinder, scan


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_the_reference_protocol_has_the_noise_that_is_stated():
    """9 HU in 300 mm of water, pixels of 0.7 mm, slices of 5 mm; half the dose adds as much variance as there was."""
    body = cylinder(150.0, slices=3, spacing=(0.71, 0.71, 5.0))
    middle = np.s_[body.shape[0] // 2 - 30 : body.shape[0] // 2 + 30]
    added = (shift(body, "dose", severity=2).array - body.array)[middle, middle]
    assert added.std() == pytest.approx(9.0, rel=0.1)


@pytest.mark.slow
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
    assert added((1.0, 1.0)) / fine == pytest.approx(np.sqrt(power_share(1.0)), rel=0.1)
    assert added((1.6, 1.6)) / fine == pytest.approx(np.sqrt(power_share(1.6)), rel=0.15)
    assert added((1.0, 0.7)) / fine == pytest.approx(np.sqrt(power_share(1.0)), rel=0.15)
    assert added((0.7, 0.7), air=170) / fine == pytest.approx(1.0, rel=0.15)


@pytest.mark.slow
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
