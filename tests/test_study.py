"""What the study says follows from what was measured, and from nothing else."""

import json

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


def test_what_was_not_measured_is_said(tmp_path):
    found = study.study(robustness.results(tmp_path / "none.json"), {})
    assert {row["verdict"] for row in found["claims"]} == {"not measured"} and found["costs"] == []
    assert study.markdown(found).count("Not measured yet.") == 4 and "Limits first" in study.markdown(found)


def test_results_are_kept_part_by_part(tmp_path):
    path = tmp_path / "r.json"
    assert not robustness.known(path, "shifts", "a", "0")
    robustness.keep(path, "shifts", "a", "0", value={"clean": {}})
    robustness.keep(path, "cka", "a", "0", value=[[1.0, 0.2], [0.3, 0.8]])
    robustness.keep(path, "cka", "a", "1", value=[[0.8, 0.2], [0.3, 0.6]])
    assert robustness.known(path, "shifts", "a", "0") and not robustness.known(path, "shifts", "a", "1")
    assert study.reused(robustness.results(path)) == [{"model": "a", "seeds": 2, "blocks": [0.9, 0.7]}]


def test_other_data_has_results_of_its_own(tmp_path, monkeypatch, capsys):
    table = tmp_path / "theirs.csv"
    table.write_text("image,label,split\na.nii.gz,b.nii.gz,test\n")
    own = robustness.results_of(table)
    assert own.parent == tmp_path and robustness.results_of(None) == robustness.RESULTS != own
    robustness.keep(own, "shifts", "swin-wild-smit", "0", value=measured(0.1)["0"])
    robustness.keep(own, "shifts", "swin-scratch", "0", value=measured(0.0)["0"])
    robustness.keep(own, "cka", "swin-wild-smit", "0", value=np.eye(12).tolist())
    monkeypatch.setattr("sys.argv", ["study", "--data", str(table)])
    study.main()
    assert "1 test cases of theirs.csv" in capsys.readouterr().out
    rows = {row["claim"]: row["verdict"] for row in json.loads((tmp_path / "theirs.STUDY.json").read_text())["claims"]}
    assert rows["Swin: wild is better than from scratch"] == "agrees"
    text = (tmp_path / "theirs.STUDY.md").read_text()
    for name in ("theirs.STUDY_curves_swin.png", "theirs.STUDY_cka_swin.png"):
        assert (tmp_path / name).stat().st_size > 5000 and name in text


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
    folder = study.STEM.parent
    if not (folder / "STUDY.json").exists():
        pytest.skip("STUDY.json has not been made yet: python -m training.experiments.study")
    found = json.loads((folder / "STUDY.json").read_text())
    again = study.study(robustness.results(robustness.RESULTS), trials.read(sarcoma.RESULTS)["models"])
    assert found == json.loads(json.dumps(again))
    assert (folder / "STUDY.md").read_text() == study.markdown(found, pictures=sorted(folder.glob("STUDY_*.png")))


def test_every_claim_names_models_of_the_design():
    known = {*sarcoma.DESIGN, *(f"{e}-{c}-contrastive" for e in ("swin", "vit") for c in ("wild", "self"))}
    assert {name for claim in study.CLAIMS for name in (claim.first, claim.second)} <= known
    assert trials.SHARE == 0.95
