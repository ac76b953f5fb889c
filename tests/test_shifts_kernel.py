"""The kernel and the thickness of slices, on objects whose answer is known and on real pairs."""

import json

import numpy as np
import pytest

from ctssl.shifts import kernel, shift, thickness
from tests.support.bodies import scan


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


@pytest.mark.slow
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


@pytest.mark.slow
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
