"""What the study says follows from what was measured, and from nothing else."""

import json
from pathlib import Path

import numpy as np
import pytest

from training.experiments import robustness, sarcoma, study, trials

CASES = [f"c{i}" for i in range(12)]


def measured(gain: float, seeds: int = 2) -> dict:
    """A model whose clean DSC is 0.5 + gain, and that loses 0.1 a severity under dose."""
    rng = np.random.default_rng(0)
    base = {case: 0.5 + gain + 0.01 * float(rng.normal()) for case in CASES}
    dose = {str(s): {case: value - 0.1 * s for case, value in base.items()} for s in (1, 3, 5)}
    return {str(seed): {"clean": {"0": base}, "dose": dose} for seed in range(seeds)}


@pytest.mark.parametrize(("gain", "verdict"), [(0.1, "agrees"), (-0.1, "disagrees"), (0.0, "cannot tell")])
def test_a_verdict_follows_from_the_interval(gain, verdict):
    kept = {"shifts": {"a": measured(gain), "b": measured(0.0)}}
    for shift in ("clean", "dose"):
        row = study.judged(study.Claim("a is better", "said so", "a", "b", shift), kept)
        assert row["verdict"] == verdict and row["n"] == 12
        assert row["difference"] == pytest.approx(gain, abs=1e-3) and row["low"] <= row["difference"] <= row["high"]


def test_the_area_is_that_of_the_curve_with_the_clean_scan_at_its_start():
    kept = {"shifts": {"a": measured(0.0)}}
    clean, under = (study.scores("a", shift, kept) for shift in ("clean", "dose"))
    for case in CASES:
        assert under[case] == pytest.approx(clean[case] - 0.1 * 2.5)


def test_what_was_not_measured_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(sarcoma, "RESULTS", tmp_path / "none.json")
    monkeypatch.setattr(robustness, "RESULTS", tmp_path / "none.json")
    found = study.study()
    assert {row["verdict"] for row in found["claims"]} == {"not measured"} and found["costs"] == []
    assert study.markdown(found).count("Not measured yet.") == 4 and "Limits first" in study.markdown(found)


def test_results_are_kept_part_by_part(monkeypatch, tmp_path):
    monkeypatch.setattr(robustness, "RESULTS", tmp_path / "r.json")
    assert not robustness.known("shifts", "a", "0")
    robustness.keep("shifts", "a", "0", value={"clean": {}})
    robustness.keep("cka", "a", "0", value=[[1.0, 0.2], [0.3, 0.8]])
    robustness.keep("cka", "a", "1", value=[[0.8, 0.2], [0.3, 0.6]])
    assert robustness.known("shifts", "a", "0") and not robustness.known("shifts", "a", "1")
    assert study.reused(robustness.results()) == [{"model": "a", "seeds": 2, "blocks": [0.9, 0.7]}]


def test_the_kernels_of_the_strata_never_meet(data, tmp_path):
    import csv

    from training.data.corpora import cases, split

    kernel = {row["id"]: row["kernel"] for row in cases("sarcoma")}
    for one, two in (("SOFT", "STANDARD"), ("STANDARD", "SOFT")):
        with open(robustness.other_kernel(one, tmp_path), newline="") as file:
            rows = list(csv.DictReader(file))
        train, test = ([row["id"] for row in rows if row["split"] == side] for side in ("train", "test"))
        assert {kernel[name] for name in train} == {one} and {kernel[name] for name in test} == {two}
        assert set(train) <= set(split("train")) and len(test) == 6 and set(test) <= set(split("test"))


def test_the_published_study_is_what_its_results_say():
    folder = Path(study.FOLDER)
    if not (folder / "STUDY.json").exists():
        pytest.skip("STUDY.json has not been made yet: python -m training.experiments.study")
    found = json.loads((folder / "STUDY.json").read_text())
    assert found == json.loads(json.dumps(study.study())) and (folder / "STUDY.md").read_text() == study.markdown(found)


def test_every_claim_names_models_of_the_design():
    known = {*sarcoma.DESIGN, *(f"{e}-{c}-contrastive" for e in ("swin", "vit") for c in ("wild", "self"))}
    assert {name for claim in study.CLAIMS for name in (claim.first, claim.second)} <= known
    assert trials.SHARE == 0.95
