"""What the study says follows from what was measured, and from nothing else."""

import json

import numpy as np
import pytest

from ctssl.shifts import SHIFTS
from training.experiments import lung_nodules, robustness, sarcoma, study, trials

CASES = [f"c{i}" for i in range(12)]


def measured(gain: float, seeds: int = 2) -> dict:
    """A model whose clean DSC is 0.5 + gain, and that loses 0.1 a severity under dose."""
    rng = np.random.default_rng(0)
    base = {case: 0.5 + gain + 0.01 * float(rng.normal()) for case in CASES}
    dose = {str(s): {case: value - 0.1 * s for case, value in base.items()} for s in (1, 3, 5)}
    return {str(seed): {"clean": {"0": base}, "dose": dose} for seed in range(seeds)}


def claim(first, second, shift="clean", expected=1):
    return study.Claim(f"{first}, {second}", "said so", first, second, shift, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("gain", "words"), [(0.1, "agrees"), (-0.1, "disagrees"), (0.0, "cannot tell")])
def test_a_verdict_follows_from_the_corrected_test(gain, words):
    kept = {"shifts": {"a": measured(gain), "b": measured(0.0)}}
    for shift in ("clean", "dose"):
        (row,) = study.judged([claim("a", "b", shift)], kept)
        assert row["verdict"] == words and (row["n"], row["seeds"]) == (12, 2)
        assert (
            row["difference"] == pytest.approx(gain, abs=1e-3)
            and row["low"] <= row["difference"] <= row["high"]
        )
    (nothing,) = study.judged([claim("a", "b", expected=0)], kept)
    assert nothing["verdict"] == ("disagrees" if gain else "cannot tell")


def test_many_claims_need_more_evidence_than_one():
    """12 patients, the same sign 10 times: sure alone, not among forty."""
    rng = np.random.default_rng(3)
    kept = {"shifts": {"a": measured(0.0), "b": measured(0.0)}}
    for case, away in zip(CASES, [*(0.02 + 0.01 * rng.random(10)), -0.001, -0.002], strict=True):
        for seed in ("0", "1"):
            kept["shifts"]["b"][seed]["clean"]["0"][case] = (
                kept["shifts"]["a"][seed]["clean"]["0"][case] - away
            )
    (alone,) = study.judged([claim("a", "b")], kept)
    many = study.judged([claim("a", "b")] * 40, kept)
    assert alone["p"] == many[0]["p"] and many[0]["p_holm"] == pytest.approx(
        min(1.0, 40 * alone["p"]), abs=1e-2
    )
    assert (alone["verdict"], many[0]["verdict"]) == ("agrees", "cannot tell")


def test_only_seeds_that_both_have_are_compared():
    kept = {"shifts": {"a": measured(0.1, seeds=3), "b": measured(0.0, seeds=1)}}
    kept["shifts"]["a"]["1"] = measured(0.9)["1"]
    (row,) = study.judged([claim("a", "b")], kept)
    assert row["seeds"] == 1 and row["difference"] == pytest.approx(0.1, abs=1e-3)


@pytest.mark.slow
def test_robustness_is_what_is_lost_and_not_what_is_left():
    """The first is better everywhere, and loses three times as much."""
    kept = {"shifts": {"swin-wild-smit": measured(0.2, seeds=1), "swin-scratch": measured(0.0)}}
    (table,) = kept["shifts"]["swin-wild-smit"].values()
    for severity, cases in table["dose"].items():
        table["dose"][severity] = {case: value - 0.2 * int(severity) for case, value in cases.items()}
    (row,) = study.lost(kept)
    assert (row["model"], row["against"], row["shift"]) == ("swin-wild-smit", "swin-scratch", "dose")
    assert (
        row["means"] == [pytest.approx(-0.75, abs=1e-3), pytest.approx(-0.25, abs=1e-3)]
        and row["difference"] < 0
    )


def test_the_area_is_that_of_the_curve_with_the_clean_scan_at_its_start():
    kept = {"shifts": {"a": measured(0.0)}}
    clean, under = (study.scores("a", shift, kept, ["0", "1"]) for shift in ("clean", "dose"))
    for case in CASES:
        assert under[case] == pytest.approx(clean[case] - 0.1 * 2.5)


def test_every_patient_is_compared_with_himself_across_kernels():
    kernels = {case: robustness.KERNELS[i % 2] for i, case in enumerate(CASES)}
    kept = {"facts": {case: {"kernel": kernel} for case, kernel in kernels.items()}, "strata": {}}
    for kernel in robustness.KERNELS:
        found = {case: 0.6 if kernels[case] == kernel else 0.5 + 0.001 * i for i, case in enumerate(CASES)}
        kept["strata"][kernel] = {"a": {"0": found}}
    (row,) = study.strata(kept)
    assert row["n"] == 12 and row["means"] == [0.6, pytest.approx(0.5055, abs=1e-3)] and row["p_holm"] < 0.01


def test_the_cost_is_the_way_to_what_training_from_scratch_reaches():
    def row(points, seed=0):
        return {"seed": seed, "curve": [[step, 1.0, dsc] for step, dsc in points]}

    trained = {
        "swin-scratch": [row([(100, 0.2), (200, 0.5), (400, 0.6)])],
        "swin-wild-smit": [row([(100, 0.58), (200, 0.6), (400, 0.9)])],
        "swin-self-smit": [row([(100, 0.1), (400, 0.5)])],
    }
    wild, own = study.costs(trained)
    assert (wild["steps"], wild["from_scratch"], wild["saved"], wild["verdict"]) == (
        [100],
        [400],
        [0.75],
        "cannot tell",
    )
    assert own["steps"] == [None] and own["saved"] == [None]  # never
    assert [
        study.cheaper(saved)
        for saved in ([0.5, 0.1, 0.2], [0.0, -0.3, -0.1], [0.5, 0.1, -0.1], [0.5, 0.5, None])
    ] == ["agrees", "disagrees", "cannot tell", "cannot tell"]


@pytest.mark.slow
def test_a_seed_without_a_shift_does_not_count_as_clean():
    kept = {"shifts": {"a": measured(0.1, seeds=1), "b": measured(0.0, seeds=1)}}
    claim = study.Claim("a is better", "", "a", "b", "dose")
    assert study.judged([claim], kept)[0]["n"] == 12
    del kept["shifts"]["b"]["0"]["dose"]["3"]
    assert study.judged([claim], kept)[0]["verdict"] == "not measured"


@pytest.mark.slow
def test_nodules_are_compared_with_the_same_training_from_scratch():
    def rows(gain, seeds):
        return [
            {"seed": seed, "cases": {case: 0.3 + gain + 0.01 * i for i, case in enumerate(CASES)}}
            for seed in seeds
        ]

    trained = {
        "vit-scratch": rows(0.0, (0, 1)),
        "vit-wild-mim": rows(0.1, (0, 1, 2)),
        "dynunet": rows(0.0, (0,)),
        "vit-wild-mim, 10 cases": rows(0.2, (0,)),
    }
    (row,) = study.nodules(trained)  # of the fewer cases there is no training from scratch
    assert (row["model"], row["against"], row["seeds"], row["verdict"]) == (
        "vit-wild-mim",
        "vit-scratch",
        2,
        "agrees",
    )
    assert row["difference"] == pytest.approx(0.1)


def test_volume_explains_what_it_explains():
    rng = np.random.default_rng(0)
    volumes = {f"c{i}": {"volume_ml": 10.0 * i} for i in range(12)}
    line = {f"c{i}": 0.05 * i for i in range(12)}
    chance = dict(zip(line, rng.random(12).tolist(), strict=True))
    trained = {"swin-scratch": [{"seed": 0, "cases": line}], "swin-wild-smit": [{"seed": 0, "cases": chance}]}
    scratch, wild = study.by_volume({"facts": volumes}, trained)
    assert scratch["r2"] == 1.0 and wild["r2"] < 0.5 and wild["verdict"] == "agrees"


def test_reuse_is_sure_where_all_seeds_say_the_same():
    def heat(late):
        return np.diag([0.9, 0.9, 0.9, late, late, late]).tolist()

    lone = {
        "cka": {"swin-wild-contrastive": {"0": heat(0.8)}, "swin-wild-smit": {"0": heat(0.5)}},
        "controls": {},
    }
    assert [row["verdict"] for row in study.reuse_claims(lone)] == [
        "cannot tell",
        "not measured",
        "cannot tell",
    ]
    kept = {
        "cka": {
            name: {str(seed): heat(late) for seed, late in enumerate(lates)}
            for name, lates in (
                ("swin-wild-contrastive", (0.8, 0.7, 0.8)),
                ("swin-wild-smit", (0.5, 0.6, 0.5)),
                ("swin-self-smit", (0.55, 0.9, 0.9)),
            )
        },
        "controls": {},
    }
    found = study.early_over_late(kept)
    assert (found["models"], found["early_change_less"], found["with_controls"]) == (3, 3, 0)
    assert [row["verdict"] for row in study.reuse_claims(kept)] == ["agrees", "cannot tell", "agrees"]
    assert {row["above_random_verdict"] for row in study.reuse_claims(kept)} == {"not measured"}
    nothing = study.reuse_claims({"cka": {}, "controls": {}})
    assert {row["verdict"] for row in nothing} == {"not measured"}


def test_reuse_is_what_is_above_strangers():
    """First blocks that are alike in any two networks, last ones that are not."""
    own, chance = [0.99] * 3 + [0.6] * 3, [0.97] * 3 + [0.2] * 3
    kept = {
        "cka": {"swin-wild-smit": {str(s): np.diag(own).tolist() for s in range(3)}},
        "controls": {"swin-wild-smit": {str(s): {"random": chance, "twin": own} for s in (2, 1, 0)}},
    }
    row = study.reuse_claims(kept)[-1]
    assert row["of"] == ["early", "late"] and (row["verdict"], row["above_random_verdict"]) == (
        "agrees",
        "disagrees",
    )
    assert row["above_random_first"] == pytest.approx([0.02] * 3) and row[
        "above_random_second"
    ] == pytest.approx([0.4] * 3)
    rows = study.reused(kept)
    assert [(row["against"], row["blocks"]) for row in rows] == [
        ("itself before", own),
        ("the one of the other corpus", own),
        ("random weights", chance),
    ]
    found = study.early_over_late(kept)
    assert (found["own"], found["random"], found["with_controls"]) == ([0.99, 0.6], [0.97, 0.2], 1)
    kept["controls"]["swin-wild-smit"] = {
        "1": {"random": chance}
    }  # a study that is not finished: the seed that has both
    row = study.reuse_claims(kept)[-1]
    assert row["above_random_first"] == pytest.approx([0.02]) and row["above_random_verdict"] == "cannot tell"
    assert study.early_over_late(kept)["with_controls"] == 0


def test_what_was_not_measured_is_said(tmp_path):
    found = study.study(robustness.results(tmp_path / "none.json"), {})
    assert {row["verdict"] for row in found["claims"]} == {"not measured"} and found["costs"] == []
    text = study.page(found)
    assert (
        text.count("Not measured yet.") == 8
        and "Limits first" in text
        and "An ellipsoid in the middle" in text
    )


def test_results_are_kept_part_by_part(tmp_path):
    path = tmp_path / "r.json"
    assert not robustness.known(path, "shifts", "a", "0")
    robustness.keep(path, "shifts", "a", "0", value={"clean": {}})
    robustness.keep(path, "cka", "a", "0", value=[[1.0, 0.2], [0.3, 0.8]])
    robustness.keep(path, "cka", "a", "1", value=[[0.8, 0.2], [0.3, 0.6]])
    assert robustness.known(path, "shifts", "a", "0") and not robustness.known(path, "shifts", "a", "1")
    row = {"model": "a", "against": "itself before", "seeds": 2, "blocks": [0.9, 0.7]}
    assert study.reused(robustness.results(path)) == [row]


@pytest.mark.slow
def test_other_data_has_results_of_its_own(labelled, tmp_path, monkeypatch, capsys):
    table = tmp_path / "theirs.csv"
    rows = [
        f"{labelled}/images/case{i}.nii.gz,{labelled}/labels/case{i}.nii.gz,{'train' if i else 'test'}"
        for i in range(3)
    ]
    table.write_text("image,label,split\n" + "\n".join(rows) + "\n")
    own = robustness.results_of(table)
    assert own.parent == tmp_path and robustness.results_of(None) == robustness.RESULTS != own
    robustness.keep(own, "shifts", "swin-wild-smit", "0", value=measured(0.1)["0"])
    robustness.keep(own, "shifts", "swin-scratch", "0", value=measured(0.0)["0"])
    robustness.keep(own, "cka", "swin-wild-smit", "0", value=np.eye(12).tolist())
    monkeypatch.setattr("sys.argv", ["study", "--data", str(table)])
    study.main()
    said = capsys.readouterr().out
    assert (
        "The test cases are those of theirs.csv" in said
        and "26 wild or 26 self scans" in said
        and "limbs" not in said
    )
    rows = {
        row["claim"]: row["verdict"]
        for row in json.loads((tmp_path / "theirs.STUDY.json").read_text())["claims"]
    }
    assert rows["Swin: wild is better than from scratch"] == "agrees"
    text = (tmp_path / "theirs.STUDY.md").read_text()
    for name in ("theirs.STUDY_curves_swin.png", "theirs.STUDY_cka_swin.png"):
        assert (tmp_path / name).stat().st_size > 5000 and name in text


@pytest.mark.slow
def test_the_study_runs_on_other_data_and_goes_on(labelled, tmp_path, monkeypatch):
    """The whole command: trains what is missing, measures, and does nothing twice, but what was trained anew."""
    table = tmp_path / "theirs.csv"
    rows = [f"{labelled}/images/case{i}.nii.gz,{labelled}/labels/case{i}.nii.gz" for i in range(3)]
    table.write_text(
        "image,label\n" + "\n".join(rows) + "\n"
    )  # as manifests of NSCLC come: without ids, without a split
    for name, value in (("CROPS", 32), ("SIZE", 16), ("SEVERITIES", (5,))):
        monkeypatch.setattr(robustness, name, value)
    runs = tmp_path / "runs"
    ask = ["swin-scratch", "--data", str(table), "--seeds", "0", "--runs", str(runs), "--steps", "1"]
    robustness.main(ask)
    path = robustness.results_of(table)
    kept = robustness.results(path)
    (held,) = kept["facts"]
    assert kept["facts"][held]["volume_ml"] > 0
    shifts = kept["shifts"]["swin-scratch"]["0"]
    assert (
        set(shifts) == {"clean", *SHIFTS}
        and set(shifts["dose"]) == {"5"}
        and set(shifts["dose"]["5"]) == {held}
    )
    assert np.array(kept["cka"]["swin-scratch"]["0"]).shape == (10, 10) and kept["strata"] == {}
    strangers = kept["controls"]["swin-scratch"]["0"]
    assert (
        list(strangers) == ["random"]
        and np.mean(strangers["random"]) < np.diag(kept["cka"]["swin-scratch"]["0"]).mean()
    )
    assert kept["crops"]["all"] == 32 >= kept["crops"]["apart"] > 0
    before = (runs / "theirs-swin-scratch-0" / "config.json").stat().st_mtime_ns
    robustness.main(ask)
    assert (runs / "theirs-swin-scratch-0" / "config.json").stat().st_mtime_ns == before
    assert robustness.results(path) == kept
    robustness.main([*ask[:-1], "2"])  # another recipe: trained and measured again
    again = robustness.results(path)
    assert again["weights"]["cka"] != kept["weights"]["cka"] and again["cka"] != kept["cka"]


def test_the_kernels_of_the_strata_never_meet(data, tmp_path):
    import csv

    from training.data.corpora import cases, split

    kernel = {row["id"]: row["kernel"] for row in cases("sarcoma")}
    for one in robustness.KERNELS:
        with open(robustness.of_one_kernel(one, tmp_path), newline="") as file:
            rows = list(csv.DictReader(file))
        train, test = ([row["id"] for row in rows if row["split"] == side] for side in ("train", "test"))
        assert {kernel[name] for name in train} == {one} and sorted(test) == sorted(split("test"))
        assert len(set(train)) == 9 and set(train) <= set(split("train"))  # as many of both


@pytest.mark.slow
def test_the_published_study_is_what_its_results_say():
    folder = study.STEM.parent
    if not (folder / "STUDY.json").exists():
        pytest.skip("STUDY.json has not been made yet: python -m training.experiments.study")
    found = json.loads((folder / "STUDY.json").read_text())
    trained, lungs = (trials.read(path)["models"] for path in (sarcoma.RESULTS, lung_nodules.RESULTS))
    again = study.study(robustness.results(robustness.RESULTS), trained, lungs=lungs)
    assert found == json.loads(json.dumps(again))
    assert (folder / "STUDY.md").read_text() == study.page(found, pictures=sorted(folder.glob("STUDY_*.png")))


def test_every_claim_names_models_that_the_command_measures():
    named = {name for claim in study.CLAIMS for name in (claim.first, claim.second)}
    assert named <= set(robustness.MODELS)
    assert set(robustness.STRATA) <= set(robustness.MODELS)
