"""What the study says follows from what was measured, and from nothing else."""

import json

import numpy as np
import pytest
import torch

import ctssl
from ctssl.datasets.case import read_case
from ctssl.finetuning.crops import draw
from ctssl.metrics import dsc
from training.experiments import robustness
from training.experiments.study import claims, page, patients, rows, tables
from training.experiments.study.boxes import Boxes
from training.experiments.study.contestants import CONTESTANTS
from training.experiments.study.measured import LOST, SHIFTED, Measured, correct, verdict
from training.experiments.study.patients import CLEAN, CUBE, FACTS, PLACES

CASES = [f"c{i}" for i in range(40)]
BLOCKS = {"vit": 6, "swin": 10}


def row(contestant: str, seed: int, level: float, *, lost: float = 0.0) -> dict:
    """A training whose clean DSC is about `level`, and that loses `lost` under every shift of the highest severity."""
    rng = np.random.default_rng(3)  # the same patients are hard for everyone
    clean = np.clip(level + 0.1 * rng.normal(size=len(CASES)), 0, 1)
    found = {CLEAN: clean, CUBE: clean - 0.1}
    found |= {place: clean - lost * int(place.split()[1]) / 5 for place in PLACES}
    blocks = BLOCKS.get(contestant.split("-")[0], 0)
    cka = (
        {"cka": {"before": np.linspace(0.9, 0.5, blocks).tolist(), "random": [0.3] * blocks}}
        if blocks
        else {}
    )
    return {
        "contestant": contestant,
        "seed": seed,
        "device": "CPU",
        "curve": [[step, 1.0, level * step / 1000] for step in (250, 500, 750, 1000)],
        "cases": CASES,
        "dsc": {place: values.round(3).tolist() for place, values in found.items()},
        **cka,
    }


def kept(*rows: dict) -> Measured:
    return Measured(list(rows))


@pytest.mark.parametrize(("gain", "word"), [(0.1, "agrees"), (-0.1, "disagrees"), (0.0, "cannot tell")])
def test_a_verdict_follows_from_the_corrected_test(gain, word):
    both = [("swin-wild-smit", 0.5 + gain), ("swin-scratch", 0.5)]
    found = kept(
        *(row(name, seed, level + away) for name, level in both for seed, away in ((0, 0.01), (1, -0.01)))
    )
    for place in (CLEAN, SHIFTED, "thickness"):
        claim = claims.Claim("better", "said so", claims.over("swin-wild-smit", "swin-scratch"), place)
        (judged,) = tables.judged([claim], found)
        assert judged["verdict"] == word and (judged["patients"], judged["trainings"]) == (40, 4)
        assert judged["difference"] == pytest.approx(gain, abs=2e-3)
        assert judged["low"] <= judged["difference"] <= judged["high"]


def test_trainings_that_differ_more_than_starts_decide_nothing():
    """However sure patients are: a start against itself, with other seeds, is no gain."""
    away = {
        ("swin-wild-smit", 0): 0.1,
        ("swin-wild-smit", 1): 0.0,
        ("swin-scratch", 0): 0.0,
        ("swin-scratch", 1): -0.05,
    }
    found = kept(*(row(name, seed, 0.5 + level) for (name, seed), level in away.items()))
    sd, free = found.noise("swin", CLEAN)
    assert (sd, free) == (pytest.approx(np.sqrt((0.1**2 / 2 + 0.05**2 / 2) / 2), rel=0.05), 2)
    (judged,) = tables.judged(
        [claims.Claim("better", "", claims.over("swin-wild-smit", "swin-scratch"))], found
    )
    assert judged["difference"] == pytest.approx(0.075, abs=5e-3) and judged["low"] > 0.05  # over patients
    assert judged["reach"] == pytest.approx(4.303 * sd, rel=0.05) and judged["verdict"] == "cannot tell"
    alone = kept(row("swin-wild-smit", 0, 0.6), row("swin-scratch", 0, 0.5))  # nothing is known of the noise
    (judged,) = tables.judged(
        [claims.Claim("better", "", claims.over("swin-wild-smit", "swin-scratch"))], alone
    )
    assert judged["reach"] is None and judged["verdict"] == "cannot tell"


def test_a_kind_that_was_trained_once_has_the_largest_noise_of_the_others():
    found = kept(
        *(row("swin-scratch", seed, 0.5 + 0.06 * seed) for seed in (0, 1)),
        *(row("vit-scratch", seed, 0.5 + 0.02 * seed) for seed in (0, 1)),
        row("dynunet-8, 3000 steps", 0, 0.6),
    )
    assert found.noise("dynunet", CLEAN) == found.noise("swin", CLEAN) > found.noise("vit", CLEAN)


def test_nothing_expected_is_confirmed_within_the_margin_and_contradicted_beyond_it():
    """No significance is no proof of equality."""
    near: dict = {"expected": 0, "difference": 0.01, "reach": 0.019, "p_holm": 1.0}
    assert verdict(near) == "agrees"
    assert verdict({**near, "reach": 0.03}) == "cannot tell"
    assert verdict({**near, "difference": 0.05, "p_holm": 0.01}) == "disagrees"
    assert verdict({"expected": 0}) == "not measured"
    claimed = {**near, "expected": 1}
    assert verdict(claimed) == "alike" and verdict({**claimed, "reach": 0.03}) == "cannot tell"
    assert verdict({**claimed, "p_holm": 0.01}) == "agrees"  # however small
    assert verdict({**claimed, "place": LOST}) == "cannot tell"  # of what shifts cost, 0.01 is much
    far = {**claimed, "reach": 0.04, "size": 0.06}
    assert verdict(far) == "less than the paper's" and verdict({**far, "reach": 0.06}) == "cannot tell"
    assert verdict({**far, "difference": -0.2, "p_holm": 0.01}) == "disagrees"  # which says more


def test_many_claims_need_more_evidence_than_one():
    one = {"expected": 1, "difference": 0.02, "reach": 0.019, "p": 0.02}
    (alone,) = correct([dict(one)])
    many = correct([dict(one) for _ in range(10)])
    assert verdict(alone) == "agrees" and verdict(many[0]) == "cannot tell"
    assert many[0]["p_holm"] == pytest.approx(0.2)


def test_every_training_counts_and_more_of_them_make_a_difference_surer():
    few = [row("swin-wild-smit", 0, 0.6), row("swin-wild-smit", 1, 0.64), row("swin-scratch", 0, 0.5)]
    terms = claims.over("swin-wild-smit", "swin-scratch")
    less, more = (
        kept(*few, *others).difference(terms)
        for others in ([], [row("swin-scratch", 1, 0.46), row("swin-scratch", 2, 0.48)])
    )
    assert less is not None and more is not None
    assert (less["trainings"], more["trainings"]) == (3, 5)
    assert less["difference"] == pytest.approx(0.12, abs=2e-3)
    assert more["difference"] == pytest.approx(0.14, abs=2e-3) and more["reach"] < less["reach"]
    assert kept(*few).difference(claims.over("swin-wild-smit", "vit-scratch")) is None


def test_a_mean_of_pretexts_has_the_noise_of_all_their_trainings():
    names = [f"swin-{corpus}-{pretext}" for corpus in ("wild", "self") for pretext in claims.ALIKE]
    levels = dict(zip(names, (0.5, 0.55, 0.6, 0.4, 0.45, 0.5), strict=True))
    found = kept(
        *(row(name, seed, level + 0.02 * seed - 0.01) for name, level in levels.items() for seed in (0, 1))
    )
    terms = claims.mean(1, names[:3]) + claims.mean(-1, names[3:])
    all_of_them, one = found.difference(terms), found.difference(claims.over(names[0], names[3]))
    assert all_of_them is not None and one is not None
    assert all_of_them["means"] == pytest.approx([0.55, 0.45], abs=2e-2)
    assert (all_of_them["difference"], all_of_them["trainings"]) == (pytest.approx(0.1, abs=2e-3), 12)
    assert all_of_them["reach"] == pytest.approx(
        one["reach"] / np.sqrt(3), rel=0.05
    )  # patients differ hardly


def test_a_seed_that_moves_all_starts_alike_is_told():
    names = ("swin-scratch", "swin-wild-smit", "swin-self-smit", "swin-wild-mim")
    moved = [
        row(name, seed, 0.4 + 0.03 * i + (0.05 + 0.002 * i) * seed)
        for i, name in enumerate(names)
        for seed in (0, 1)
    ]
    effect = kept(*moved).seed_effect("swin")
    assert (effect["difference"], effect["starts"]) == (pytest.approx(0.053, abs=2e-3), 4) and effect[
        "p"
    ] < 0.01
    turned = [row(name, seed, 0.4 + 0.05 * (seed ^ i % 2)) for i, name in enumerate(names) for seed in (0, 1)]
    assert kept(*turned).seed_effect("swin")["p"] > 0.5


def test_a_difference_of_differences():
    levels = {"swin-wild-smit": 0.6, "swin-scratch": 0.4, "vit-wild-smit": 0.5, "vit-scratch": 0.45}
    found = kept(*(row(name, seed, level + 0.01 * seed) for name, level in levels.items() for seed in (0, 1)))
    place = next(number for number, one in enumerate(claims.ABSTRACT) if "gains more" in one.text)
    claim = claims.ABSTRACT[place + 1]
    assert claim.text == "... with SMIT"
    (judged,) = tables.judged([claim], found)
    assert judged["difference"] == pytest.approx(0.15, abs=3e-3) and judged["verdict"] == "agrees"


def test_robustness_is_what_is_lost_and_not_what_is_left():
    """The first is better everywhere, and loses three times as much."""
    found = kept(row("swin-wild-smit", 0, 0.8, lost=0.3), row("swin-self-smit", 0, 0.4, lost=0.1))
    terms = claims.over("swin-wild-smit", "swin-self-smit")
    left, away = (found.difference(terms, place) for place in (SHIFTED, LOST))
    assert left is not None and away is not None
    assert left["difference"] > 0.2 and away["difference"] == pytest.approx(-0.12, abs=5e-3)
    assert found.scores("swin-wild-smit", "dose", [0]).mean() == pytest.approx(0.8 - 0.18, abs=0.05)


def test_the_steps_until_what_scratch_reaches():
    slow, fast = row("vit-scratch", 0, 0.4), row("vit-wild-smit", 0, 0.8)
    (found,) = tables.costs(kept(slow, fast))
    assert (found["steps"], found["from scratch"]) == ([500], [1000])
    never = row("vit-wild-smit", 0, 0.2)
    assert tables.costs(kept(slow, never))[0]["steps"] == [None]


def test_feature_reuse_is_counted_over_encoders():
    """Two trainings of one encoder are no two encoders; what every start does is no mark of one."""
    wild = [
        row(f"{encoder}-wild-{pretext}", seed, 0.5)
        for encoder in BLOCKS
        for pretext in ("smit", "mim", "contrastive")
        for seed in (0, 1)
    ]
    first, *_ = tables.reuse_claims(kept(*wild))
    assert (first["encoders"], first["holds in"], first["verdict"]) == (6, 6, "agrees")
    few, *_ = tables.reuse_claims(kept(*wild[:4]))
    assert (few["encoders"], few["verdict"]) == (2, "cannot tell")
    first, *_ = tables.reuse_claims(kept(*wild, row("vit-scratch", 0, 0.5)))
    assert first["verdict"] == "so do all 1 others (self, scratch): no mark of it"


def test_every_claim_names_contestants():
    for claim in (*claims.ABSTRACT, *claims.TABLES):
        assert {name for _, name in claim.terms} <= set(CONTESTANTS)
        assert sum(factor for factor, _ in claim.terms) == pytest.approx(0)
    assert set(page.SHOWN) <= set(CONTESTANTS)


@pytest.mark.slow
def test_the_published_study_is_what_its_results_say():
    found = tables.study(Measured.read(), json.loads(FACTS.read_text()))
    assert json.loads(tables.STEM.with_suffix(".json").read_text()) == json.loads(json.dumps(found))
    pictures = [tables.STEM.with_name(f"STUDY_{name}.png") for name in ("gains", "shifts")]
    assert all(path.stat().st_size > 5000 for path in pictures)
    assert tables.STEM.with_suffix(".md").read_text() == page.page(found, pictures)


def test_a_row_replaces_that_of_the_same_contestant_and_seed(tmp_path):
    path = tmp_path / "rows.jsonl"
    for level, seed in ((0.3, 1), (0.4, 0), (0.5, 1)):
        rows.add(path, row("vit-scratch", seed, level))
    rows.add(path, row("swin-scratch", 0, 0.2))
    assert [rows.key(one) for one in rows.read(path)] == [
        ("vit-scratch", 0),
        ("vit-scratch", 1),
        ("swin-scratch", 0),
    ]
    assert np.mean(rows.read(path)[1]["dsc"][CLEAN]) == pytest.approx(0.5, abs=0.03)


def test_a_training_belongs_to_one_process(tmp_path):
    with robustness.claimed(tmp_path, "vit-scratch + shifts", 0) as mine:
        assert mine
        with robustness.claimed(tmp_path, "vit-scratch + shifts", 0) as other:
            assert not other
    with robustness.claimed(tmp_path, "vit-scratch + shifts", 0) as again:
        assert again  # given back


@pytest.mark.slow
def test_boxes_are_scored_as_segment_scores_them(data):
    net = ctssl.load_segmenter("vit-wild-lesions")
    net.threshold = 0.5
    cases = [patients._case(name, "_offcentre") for name in ("owkin_115", "owkin_290")]
    images, truths, expected = [], [], []
    for case in cases:
        scan, mask = read_case(case)
        images.append(patients._ready(scan))
        truths.append(mask.array > 0)
        expected.append(dsc(net.segment(scan).array > 0, mask.array > 0))
    found = Boxes.of(images, truths, torch.device("cpu")).dsc(net)
    assert found == pytest.approx(expected, abs=2e-3) and min(found) > 0.3


@pytest.mark.slow
def test_a_contestant_is_trained_measured_and_not_trained_again(data, tmp_path, monkeypatch):
    """Crops that were drawn ahead are those that are drawn now."""
    some = patients.cases("lung_radiogenomics")[:2]
    split = {side: patients.lung_split()[side][:2] for side in ("train", "choose")}
    monkeypatch.setattr(patients, "cases", lambda group: some)
    monkeypatch.setattr(patients, "lung_split", lambda: split)
    for module in (robustness, patients):
        monkeypatch.setattr(module, "PLACES", ["thickness 5"])
    monkeypatch.setattr(robustness, "CROPS", 8)
    monkeypatch.setattr(robustness, "BATCH", 4)
    monkeypatch.setattr(robustness, "CONTESTANTS", dict(CONTESTANTS))
    work, out = tmp_path / "work", tmp_path / "rows.jsonl"
    ask = [
        "vit-scratch",
        "--seeds",
        "0",
        "--steps",
        "2",
        "--work",
        str(work),
        "--out",
        str(out),
        "--device",
        "cpu",
    ]
    robustness.main([*ask, "--prepare", "1"])
    settings = robustness.CONTESTANTS["vit-scratch"].settings
    task = patients.Task(work, torch.device("cpu"))
    ahead = list(task.crops(settings) or [])
    assert len(ahead) == 2
    for step, (images, labels) in enumerate(ahead):
        fresh = draw(task.learning(settings), settings, step)
        torch.testing.assert_close(images, fresh[0].float(), atol=1e-3, rtol=0)
        assert torch.equal(labels, fresh[1])
    robustness.main(ask)
    (made,) = rows.read(out)
    assert made["settings"]["steps"] == 2 and set(made["dsc"]) == {CLEAN, CUBE, "thickness 5"}
    assert len(made["dsc"][CLEAN]) == 2 and len(made["cka"]["before"]) == 6 and "twin" not in made["cka"]
    before = out.read_bytes()
    robustness.main(ask)
    assert out.read_bytes() == before
    with pytest.raises(SystemExit):
        robustness.main(["vit-wild-nothing"])


def test_seeds_of_other_weights_are_not_mixed(tmp_path):
    out = tmp_path / "rows.jsonl"
    rows.check_start(out, "vit-wild-mim", "one")  # the first training
    rows.add(out, row("vit-wild-mim", 0, 0.5) | {"start": "one"})
    rows.check_start(out, "vit-wild-mim", "one")
    with pytest.raises(SystemExit, match="not those of its other seeds"):
        rows.check_start(out, "vit-wild-mim", "two")
