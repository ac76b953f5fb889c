"""A robustness report begins with what it says, and tells how large each shift is where it acts and where it is seen."""

import numpy as np
import pytest

from ctssl.robustness.conclusion import conclude, on_crops, sizes
from ctssl.robustness.measure import size_of_change
from ctssl.robustness.report import counted, tables
from ctssl.volume.volume import Volume
from ctssl.zoo import ModelSpec, Preprocess

CASES = 12


def rows_of(model: str, losses: dict[str, float], *, clean: float = 0.8, width: float = 400.0) -> list[dict]:
    """Scores of twelve patients: as they are, and at severities 1 and 5 with a fifth of a loss and all of it."""
    rows = []
    for number in range(CASES):
        own = clean + 0.01 * np.sin(number)
        base = {
            "model": model,
            "case": f"c{number}",
            "patient": f"p{number}",
            "label": 1,
            "nsd": 0.5,
            "hd95_mm": 3.0,
        }
        base |= {
            "volume_ml": 1.0,
            "reference_ml": 1.0,
            "lesions": 1,
            "lesions_found": 1,
            "false_positives": 0,
        }
        base |= {"scan_mm": 0.8, "working_mm": 2.0, "width_mm": width}
        rows.append(
            {**base, "shift": "clean", "severity": 0, "dsc": own, "best_dsc": 1.0, "unchanged": False}
        )
        for shift, loss in losses.items():
            for severity, share in ((1, 0.2), (5, 1.0)):
                noise = 0.002 * np.cos(7 * number + severity)
                size = {"change_hu": 10.0 * severity, "working_change_hu": 2.0 * severity}
                score = own - share * loss + noise
                more = {
                    "shift": shift,
                    "severity": severity,
                    "dsc": score,
                    "best_dsc": 1.0,
                    "unchanged": False,
                }
                rows.append({**base, **size, **more})
    return rows


def test_the_conclusion_names_what_costs_most_first_and_what_costs_nothing():
    rows = rows_of("mine", {"dose": 0.1, "kernel_sharp": 0.3, "thickness": 0.0})
    found = tables(rows, ["mine"], ["dose", "kernel_sharp", "thickness"], (), 2.0)
    (said,) = found.conclusion
    assert said.startswith("mine has a mean DSC of 0.80") and "on 12 clean scans" in said
    assert (
        said.index("kernel_sharp -0.1") < said.index("dose -0.0")
        and "-0.30" in said
        and "at severity 5" in said
    )
    assert "No loss is significant under thickness" in said
    assert found.markdown().startswith(said)


@pytest.mark.slow
def test_two_models_are_compared_in_words():
    rows = rows_of("mine", {"dose": 0.1}) + rows_of("other", {"dose": 0.4}, clean=0.7)
    said = tables(rows, ["mine", "other"], ["dose"], (), 2.0).conclusion[-1]
    assert (
        said.startswith("Against other, mine is better on clean scans (DSC +0.1")
        and "better under dose" in said
    )
    rows = rows_of("mine", {"dose": 0.1}) + rows_of("same", {"dose": 0.1})
    assert tables(rows, ["mine", "same"], ["dose"], (), 2.0).conclusion[-1] == (
        "Between mine and same, no difference in DSC is significant."
    )


def test_a_shift_has_its_size_on_the_scan_and_at_the_working_spacing():
    rows = rows_of("mine", {"dose": 0.1})
    keys = ("severity", "change_hu", "working_change_hu", "scan_mm", "working_mm")
    told = [[row[key] for key in keys] for row in sizes(rows)]
    np.testing.assert_allclose(told, [[1, 10.0, 2.0, 0.8, 2.0], [5, 50.0, 10.0, 0.8, 2.0]])
    rng = np.random.default_rng(0)
    scan = Volume(np.full((40, 40, 40), 30, np.float32), np.diag([1.0, 1.0, 1.0, 1.0]))
    noisy = Volume(scan.array + rng.normal(0, 20, scan.shape).astype(np.float32), scan.affine)
    model = type("Net", (), {"spec": ModelSpec("x", "segmenter", "swin", preprocess=Preprocess(4.0))})()
    size = size_of_change(scan, noisy, model)
    assert size["change_hu"] == pytest.approx(20 * np.sqrt(2 / np.pi), rel=0.05)
    assert size["working_change_hu"] < 0.5 * size["change_hu"] and (size["scan_mm"], size["working_mm"]) == (
        1.0,
        4.0,
    )
    assert size_of_change(scan, scan, None)["change_hu"] == 0.0


def test_crops_are_told_where_the_whole_body_counts():
    losses = {"dose": 0.1, "kernel_sharp": 0.1, "streaks": 0.1}
    (said,) = on_crops(rows_of("mine", losses, width=92.0))
    assert (
        "92 mm across" in said and "dose, streaks mean something else" in said and "kernel_sharp" not in said
    )
    assert on_crops(rows_of("mine", {"dose": 0.1})) == []
    assert on_crops(rows_of("mine", {"kernel_sharp": 0.1}, width=92.0)) == []


def test_no_rows_say_nothing():
    assert conclude(tables([], ["mine"], [], (), 2.0)) == []


def test_what_was_not_tested_is_not_called_insignificant():
    rows = [
        row
        for model in ("one", "two")
        for row in rows_of(model, {"dose": 0.3})
        if row["case"] in ("c0", "c1")
    ]
    lost, _, compared = conclude(tables(rows, ["one", "two"], ["dose"], (), 2.0))
    assert lost.endswith("on 2 clean scans. Not tested (6 patients are needed): dose.")
    assert compared == "Between one and two, nothing was tested (6 patients are needed)."


def test_a_label_counts_in_every_case_in_which_truth_or_a_mask_has_it():
    """Before, what a mask marked of a label that the truth of the case has not was nothing."""
    rows = rows_of("one", {"dose": 0.1})
    for row in rows:
        row |= {"volume_ml": 0.0 if row["case"] == "c3" else 1.0, "volume_error_ml": 0.0}
    assert counted(rows) == (rows, [])
    rows.append({**rows[0], "label": 2})
    kept, notes = counted(rows)
    assert {row["case"] for row in kept} == {f"c{n}" for n in range(CASES) if n != 3}
    assert notes == [
        "1 cases are not counted, as neither truth nor any mask holds one of the several labels: c3"
    ]
    marked = next(row for row in rows if row["case"] == "c3" and row["severity"] == 5)
    rows.append({**marked, "label": 2, "dsc": 0.0, "volume_error_ml": 7.0, "false_positives": 1})
    rows.append({**marked, "label": 9, "dsc": 0.0, "volume_error_ml": 7.0})  # which no truth has
    kept, notes = counted(rows)
    assert not notes and {row["label"] for row in kept if row["case"] == "c3"} == {2}
    mine = {(row["shift"], row["severity"]): row for row in kept if row["case"] == "c3"}
    assert mine[marked["shift"], 5]["dsc"] == 0.0 and mine["clean", 0]["dsc"] == 1.0
    assert len(mine) == len({(row["shift"], row["severity"]) for row in rows})


def test_the_only_label_counts_whatever_its_number():
    rows = rows_of("one", {"dose": 0.1})
    for row in rows:
        empty = row["case"] == "c3"
        row |= {"label": 1 if empty else 2, "volume_ml": 0.0 if empty else 1.0, "volume_error_ml": 0.0}
    kept, notes = counted(rows)
    assert not notes and {row["label"] for row in kept} == {2} and len(kept) == len(rows)
    assert all(row["dsc"] == 1.0 for row in kept if row["case"] == "c3")
