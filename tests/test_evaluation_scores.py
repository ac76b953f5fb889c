"""Scores of one mask against another: grids that lie, labels of any number, labels that nobody has."""

import numpy as np
import pytest

from ctssl.evaluation.scores import check_same_grid, read_mask, score_masks
from ctssl.evaluation.statistics import gained, paired
from ctssl.finetuning.report import Report, judge
from ctssl.volume.volume import Volume


def turned(degrees: float) -> np.ndarray:
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[c, -s, 0, 0], [s, c, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])


@pytest.mark.parametrize(
    "lie", [np.diag([1, 1, 1.09, 1]), turned(5.0)], ids=["9% thicker", "turned by 5 degrees"]
)
def test_a_grid_that_lies_is_refused(ball, lie):
    truth = ball[1]
    other = Volume(truth.array, truth.affine @ lie)
    with pytest.raises(ValueError, match="different grids .*corners are up to"):
        score_masks(other, truth, name="c", tolerance_mm=None)
    check_same_grid(Volume(truth.array, truth.affine + 1e-3), truth, name="c")  # rounding is none


def test_labels_above_255_do_not_wrap_on_a_tilted_grid(ball):
    """Disjoint masks of label 300 agree in nothing; 300 and 44 are one label in a byte."""
    affine = ball[1].affine.copy()
    affine[1, 2] = 0.6  # gantry tilt
    one, two = (np.zeros(ball[1].shape, np.int32) for _ in range(2))
    one[4:9, 4:9, 4:9], two[12:17, 12:17, 4:9] = 300, 300
    (row,) = score_masks(Volume(one, affine), Volume(two, affine), name="c", tolerance_mm=None)
    assert (row["label"], row["dsc"]) == (300, 0.0)


def test_a_tilted_gantry_changes_no_count_and_no_volume():
    affine = np.diag([0.5, 0.5, 5.0, 1.0])
    affine[1, 2] = 5 * np.tan(0.25)
    mask = np.zeros((20, 20, 6), np.uint8)
    mask[4, 4, 1] = mask[9, 9, 2] = mask[15, 15, 4] = 1
    (row,) = score_masks(Volume(mask, affine), Volume(mask, affine), name="c", tolerance_mm=2.0)
    assert (row["dsc"], row["lesions"], row["lesions_found"], row["hd95_mm"]) == (1.0, 3, 3, 0.0)
    assert row["volume_ml"] == pytest.approx(3 * 0.5 * 0.5 * 5 / 1000)


def test_a_negative_label_is_refused(ball, tmp_path):
    array = ball[1].array.astype(np.int16)
    array[0, 0, 0] = -1
    path = Volume(array, ball[1].affine).save(tmp_path / "m.nii.gz")
    with pytest.raises(ValueError, match="holds the label -1; give labels from 0"):
        read_mask(path)


def test_differences_of_rounding_are_none():
    rows = [{"patient": i, "dsc": 0.3, "other_dsc": 0.1 + 0.2} for i in range(8)]
    (row,) = paired(rows, ("dsc",))
    assert row["difference"] == 0.0 and np.isnan(row["p"])


def test_patients_without_a_difference_do_not_lower_p():
    """Five signs cannot have a p below 2 / 2^5; beside fifteen zeros it was 0.043."""
    rows = [{"patient": i, "dsc": 0.5 + 0.01 * max(0, i - 14), "other_dsc": 0.5} for i in range(20)]
    (row,) = paired(rows, ("dsc",))
    assert row["p"] == pytest.approx(2 / 2**5) and row["patients"] == 20


def test_a_gain_lies_within_its_interval_where_patients_have_different_numbers_of_scans():
    rng = np.random.default_rng(0)
    rows = [
        {"patient": patient, "dsc": 0.5 + gain + rng.normal(0, 0.01), "other_dsc": 0.5}
        for patient in range(12)
        for gain, scans in [(0.3, 20) if patient < 4 else (-0.2, 1)]
        for _ in range(scans)
    ]
    found = gained(rows, "dsc")
    assert found["low"] < found["difference"] < found["high"] and found["difference"] < 0


def test_finetune_leaves_out_a_label_that_neither_case_nor_mask_has(ball):
    """As `ctssl evaluate` does; before, it counted as DSC 1."""
    scan, truth = ball
    found = Volume(np.roll(truth.array, 2, 0), truth.affine, truth.name)
    judged = judge(found, truth, scan, {1: "tumour", 2: "organ"})
    rows = score_masks(found, truth, name="c", tolerance_mm=2.0)
    assert judged.dsc == {"tumour": rows[0]["dsc"]} and 0 < rows[0]["dsc"] < 1
    report = Report(None, {"a": judged.dsc, "b": {"tumour": 0.0, "organ": 0.5}}, [], [], [], 0.0)  # type: ignore[arg-type]
    assert report.by_label() == {"tumour": (pytest.approx(rows[0]["dsc"] / 2), 2), "organ": (0.5, 1)}
    assert report.mean_dsc == pytest.approx((rows[0]["dsc"] + 0.25) / 2)
    assert not Report(None, {"a": {"tumour": 0.0}}, [], [], [{"step": 1, "dsc": 0.0}], 0.0).learned  # type: ignore[arg-type]


@pytest.mark.parametrize("side", [1, 2, 3])
def test_small_structures_on_a_tilted_grid_keep_their_distances(side):
    rng = np.random.default_rng(side)
    for _ in range(20):
        thick = rng.choice([1.25, 2.5, 5.0])
        affine = np.diag([0.8, 0.8, thick, 1.0])
        affine[1, 2] = thick * np.tan(np.radians(rng.uniform(5, 25)))
        found, truth = np.zeros((2, 40, 40, 12), np.float32)
        found[5 : 5 + side, 5 : 5 + side, 5] = truth[20 : 20 + side, 5 : 5 + side, 5] = 1
        (row,) = score_masks(Volume(found, affine), Volume(truth, affine), name="x", tolerance_mm=2.0)
        assert row["dsc"] == 0 and row["hd95_mm"] == pytest.approx(15 * 0.8)
        assert row["nsd"] == 0 or np.isnan(row["nsd"])
