"""Areas, falls and paired tests, by hand."""

import math

import pytest

from ctssl.evaluation.statistics import holm
from ctssl.robustness import curves
from ctssl.robustness.report import tables


def rows(scores: dict[int, list[float]], model="a", shift="dose") -> list[dict]:
    """By severity the DSC of the cases c0, c1, ...; 0 is clean."""
    return [
        {
            "model": model,
            "case": f"c{i}",
            "patient": f"c{i}",
            "shift": shift if severity else "clean",
            "severity": severity,
            "label": 1,
            "dsc": value,
            "nsd": value,
            "hd95_mm": 1.0,
            "lesions": 1,
            "lesions_found": 1,
            "false_positives": 0,
            "volume_ml": 1.0 + i,
        }
        for severity, values in scores.items()
        for i, value in enumerate(values)
    ]


def test_areas_and_falls_by_hand():
    assert curves.area([0, 1, 3, 5], [1.0, 0.8, 0.6, 0.2]) == pytest.approx((0.9 + 2 * 0.7 + 2 * 0.4) / 5)
    assert curves.area([0, 1, 5], [0.7, 0.7, 0.7]) == pytest.approx(0.7)
    mine = rows({0: [0.9, 0.8], 1: [0.8, 0.8], 5: [0.4, 0.6]})
    each = curves.areas(mine, "a", "dose")
    assert [row["dsc"] for row in each] == pytest.approx([(0.85 + 4 * 0.6) / 5, (0.8 + 4 * 0.7) / 5])
    assert each[0]["dsc_lost"] == pytest.approx(0.9 - 0.65)
    (seen,) = curves.overview(mine, ["a"], ["dose"])
    assert (seen["clean_dsc"], seen["worst_dsc"], seen["at_severity"]) == (
        pytest.approx(0.85),
        pytest.approx(0.5),
        5,
    )
    assert (seen["worst_case"], seen["from_dsc"], seen["to_dsc"]) == ("c0", 0.9, 0.4)
    (better,) = curves.overview(rows({0: [0.5, 0.5], 1: [0.7, 0.7], 5: [0.6, 0.8]}), ["a"], ["dose"])
    assert (better["worst_dsc"], better["at_severity"]) == (
        pytest.approx(0.7),
        1,
    )  # of the severities, not of the clean scan
    assert [point["severity"] for point in curves.curve(mine, "a", "dose")] == [0, 1, 5]


def test_paired_tests_need_six_cases_and_are_corrected_over_the_table():
    better = rows({0: [0.9] * 8, 3: [0.8 + i / 100 for i in range(8)]}, "a")
    worse = rows({0: [0.9] * 8, 3: [0.6 - i / 100 for i in range(8)]}, "b")
    found = curves.against_model(better + worse, "a", "b", ["dose"])
    table = {(row["shift"], row["metric"]): row for row in found}
    off = (0.2 + 2 * 3.5 / 100) / 2
    assert table["dose", "dsc"]["difference"] == pytest.approx(off)
    assert table["dose", "dsc_lost"]["difference"] == pytest.approx(-off)
    assert math.isnan(table["clean", "dsc"]["p"])  # the same: no test
    tested = [row for row in found if not math.isnan(row["p"])]
    assert len(tested) == 3 and all(row["p"] == pytest.approx(2 / 2**8) for row in tested)
    assert table["dose", "dsc"]["p_holm"] == pytest.approx(3 * 2 / 2**8)
    few = [row for row in better + worse if row["case"] in ("c0", "c1", "c2", "c3", "c4")]
    assert all(math.isnan(row["p"]) for row in curves.against_model(few, "a", "b", ["dose"]))
    down = {row["metric"]: row for row in curves.against_clean(better, "a", ["dose"])}
    assert down["dsc"]["difference"] < 0 and down["dsc"]["patients"] == 8


def test_holm_is_over_the_whole_table():
    several = [
        row
        for name, less in (("a", 0.1), ("b", 0.11), ("c", 0.12))
        for row in rows({0: [0.9] * 8, 3: [0.9 - less - i / 100 for i in range(8)]}, name)
    ]
    found = tables(several, ["a", "b", "c"], ["dose"], (), 2.0)
    for table in (found.against_clean, found.against_model):
        assert [row["p_holm"] for row in table] == pytest.approx(
            holm([row["p"] for row in table]), nan_ok=True
        )
        assert len({row.get("against", row["model"]) for row in table}) > 1
