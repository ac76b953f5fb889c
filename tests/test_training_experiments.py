"""Numbers in RESULTS.md and the cards are those of the result files."""

import dataclasses
import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from huggingface_hub import ModelCard

import ctssl
from ctssl import Settings
from ctssl.finetuning.probe_fits import by_patient
from ctssl.finetuning.start import open_start
from ctssl.zoo import DEFAULT, MODELS
from training.data.corpora import lung_split, nodule_split, split
from training.experiments import (
    head_neck,
    lung,
    lung_nodules,
    lung_tumour,
    probe,
    sarcoma,
    trials,
)
from training.experiments.study import patients
from training.release.card import card, strictest
from training.release.segmenter import card as segmenter_card
from training.release.segmenter import task_of

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("lung-tumour-folds", lung_tumour.folds_table),
        ("probe", probe.short),
        *(
            (one.name, partial(trials.table, one.results))
            for one in (
                sarcoma.EXPERIMENT,
                lung_nodules.EXPERIMENT,
                lung.EXPERIMENT,
                lung_tumour.EXPERIMENT,
                lung_tumour.CHEST,
                head_neck.EXPERIMENT,
            )
        ),
    ],
)
def test_the_results_page_shows_the_measured_table(name, table):
    text = trials.RESULTS_PAGE.read_text()
    assert text.split(f"<!-- {name} -->\n")[1].split("<!-- end -->")[0] == table()


@pytest.mark.parametrize("name", sorted(name for name, spec in MODELS.items() if spec.kind == "encoder"))
def test_what_does_not_beat_its_random_twin_is_for_comparison_only(name):
    better = probe.beats_its_twin(json.loads(probe.RESULTS.read_text()), name)
    assert MODELS[name].baseline_only == (not better)
    said = "ships for comparison only" in (ROOT / "model_cards" / name / "README.md").read_text()
    assert said == (not better)


def test_the_probe_measured_the_weights_that_are_published():
    weights = json.loads(probe.RESULTS.read_text())["weights"]
    encoders = {name: spec.sha256 for name, spec in MODELS.items() if probe.is_pretrained(name)}
    assert weights == {"sarcoma": encoders, "lung_nodules": encoders}


def test_the_default_has_better_frozen_features_than_the_other_vits_in_the_package():
    others = [name for name in MODELS if name.startswith("vit-wild") and name != DEFAULT]
    for models in json.loads(probe.RESULTS.read_text())["tasks"].values():
        values = {name: by_patient(rows, "linear", "auroc") for name, rows in models.items()}
        assert all(probe.mean_interval(values[DEFAULT] - values[other])[0] > 0 for other in others)


def test_the_results_cover_every_test_case_and_add_up():
    kept = json.loads(sarcoma.RESULTS.read_text())
    for rows in kept["models"].values():
        for row in rows:
            assert sorted(row["cases"]) == split("test")
            assert row["mean_dsc"] == pytest.approx(sum(row["cases"].values()) / 12, abs=1e-3)


@pytest.mark.parametrize(
    "name", sorted(path.parent.name for path in (ROOT / "model_cards").glob("*/report.json"))
)
def test_a_segmenters_card_is_what_its_files_say(name):
    folder = ROOT / "model_cards" / name
    config, report = (json.loads((folder / file).read_text()) for file in ("config.json", "report.json"))
    task = task_of(name)
    text = (folder / "README.md").read_text()
    assert text == segmenter_card(config, report, (folder / "cases.csv").read_text(), task)
    read = ModelCard(text)
    assert read.data.eval_results and read.data.eval_results[0].metric_value == pytest.approx(
        report["mean_dsc"], abs=1e-3
    )
    held_out = {
        "sarcoma": lambda: split("test"),
        "lung-nodule": lambda: nodule_split("test"),
        "lung-tumour": lambda: sorted(  # all of another collection
            f"radiomics-{name}" for side in ("train", "choose") for name in lung_split()[side]
        ),
    }[task.removesuffix("-chest")]()
    assert sorted(report["held_out"]) == held_out


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(name for name, spec in MODELS.items() if spec.kind == "encoder"))
def test_a_card_is_what_its_files_say(name):
    folder = ROOT / "model_cards" / name
    config, history = (json.loads((folder / file).read_text()) for file in ("config.json", "training.json"))
    text = (folder / "README.md").read_text()
    assert text == card(config, history)
    assert all((folder / file).is_file() for file in ("loss.png", "features.png"))
    read = ModelCard(text)  # what the Hub would read
    assert read.data.license == MODELS[name].licence.lower() == strictest(history["scans"])
    assert read.data.library_name == "ctssl" and {"ct", config["encoder"], config["pretext"]} <= set(
        read.data.tags or []
    )
    assert ModelCard(f"---\n{read.data.to_yaml()}\n---\n").data.to_dict() == read.data.to_dict()
    if rows := sarcoma_rows(name):
        assert read.data.eval_results
        assert read.data.eval_results[0].metric_value == pytest.approx(np.mean(rows), abs=1e-4)


def sarcoma_rows(name):
    return [row["mean_dsc"] for row in json.loads(sarcoma.RESULTS.read_text())["models"].get(name, [])]


def test_weights_take_over_the_strictest_licence():
    def of(*licences):
        return strictest([{"id": "x", "licence": text} for text in licences])

    assert of("Apache-2.0 (repo)", "public domain (NLM)") == "apache-2.0"
    assert (
        of("CC BY 3.0", "Apache-2.0 (repo)") == "cc-by-3.0"
        and of("CC BY 3.0", "CC BY 3.0 / 4.0") == "cc-by-4.0"
    )
    assert of("CC BY 4.0", "CC BY-NC 3.0") == "cc-by-nc-3.0"
    mixed = ("CC BY-NC 3.0 / 4.0", "CC BY 3.0, masks CC BY-NC 4.0")
    for closed in ("CC BY-NC-ND 3.0", "unknown", *mixed):
        with pytest.raises(ValueError, match="does not allow publishing"):
            of("CC BY 3.0", closed)


def test_the_cost_is_the_first_evaluation_near_the_last_one():
    curve = [[30, 1.0, 0.2], [60, 0.8, 0.58], [90, 0.7, 0.5], [120, 0.6, 0.6]]
    assert trials.steps_to_share({"curve": curve}) == 60 and trials.steps_to_share({}) is None
    models = {
        "swin-scratch": 0,
        "swin-wild-mim": 0,
        "swin-wild-mim, 5 cases": 0,
        "swin-scratch, 5 cases": 0,
        "dynunet": 0,
    }
    assert trials.scratch_of("swin-wild-mim, 5 cases", models) == "swin-scratch, 5 cases"
    assert (
        trials.scratch_of("swin-wild-mim", models) == "swin-scratch"
        and trials.scratch_of("dynunet", models) is None
    )


def test_a_training_of_another_length_has_a_row_of_its_own_and_none_is_done_twice(tmp_path, monkeypatch):
    done = []

    def measure(experiment, model, *, head, few_shot, settings, out):
        done.append((model, settings.steps, out.name))
        return {
            "seed": settings.seed,
            "mean_dsc": 0.5,
            "cases": {},
            "settings": asdict(settings),
            "spacing_mm": None,
        }

    monkeypatch.setattr(trials, "measure", measure)
    experiment = trials.Experiment(
        "task", "command", lambda: tmp_path, [], tmp_path / "r.json", [], Settings(steps=10), {"dynunet": 0.5}
    )
    for _ in range(2):
        trials.train(experiment, "swin-wild-mim", seed=0, runs=tmp_path)
        trials.train(experiment, "swin-wild-mim", seed=0, runs=tmp_path, steps=30)
        trials.train(experiment, "dynunet", seed=0, runs=tmp_path, steps=10)
    assert done == [
        ("swin-wild-mim", 10, "task-swin-wild-mim-0"),
        ("swin-wild-mim", 30, "task-swin-wild-mim-30steps-0"),
        ("dynunet", 5, "task-dynunet-0"),
    ]
    assert list(trials.read(experiment.results)["models"]) == [
        "swin-wild-mim",
        "swin-wild-mim, 30 steps",
        "dynunet",
    ]


@pytest.mark.parametrize(("model", "head"), [("dynunet", ""), ("dynunet-8", ""), ("vit-scratch", "light")])
def test_a_whole_network_is_trained_without_a_head_beside_it(tmp_path, monkeypatch, model, head):
    given = []

    def finetune(data, **args):
        given.append(open_start(args["model"], args["head"], from_scratch=False, seed=0).head)
        return SimpleNamespace(held_out={"one": {"tumour": 0.5}}, curve=[], seconds=1.0)

    monkeypatch.setattr(ctssl, "finetune", finetune)
    experiment = trials.Experiment(
        "task", "command", lambda: tmp_path, [], tmp_path / "r.json", [], Settings(steps=10)
    )
    trials.train(experiment, model, seed=0, runs=tmp_path)
    assert given == [head or model] and list(trials.read(experiment.results)["models"]) == [model]


def test_the_middle_is_an_ellipsoid_of_its_share():
    from training.experiments.middle import ellipsoid

    mask = ellipsoid((40, 60, 20), 0.5)
    assert mask.sum() / mask.size == pytest.approx(np.pi / 6 * 0.5**3, rel=0.05)
    np.testing.assert_array_equal(mask, mask[::-1, ::-1, ::-1])
    assert mask[20, 30, 10] and mask[20, 44, 10] and not mask[20, 46, 10] and not mask[31, 30, 10]


def test_no_nodule_patient_is_on_both_sides():
    train, test = nodule_split("train"), nodule_split("test")
    patient = [name.rsplit("_nod", 1)[0] for name in [*train, *test]]
    assert len(set(patient)) == len(train) + len(test) == 94 and len(test) == 31


def test_the_interval_covers_and_pairs_are_judged_by_patient():
    low, high = probe.mean_interval(np.random.default_rng(0).normal(1.0, 1.0, 400))
    assert low < 1.0 < high and high - low == pytest.approx(4 / 20, rel=0.15)

    def runs(values):
        names = [str(i) for i in range(len(values))]
        return [{"patients": names, "linear": {"auroc": values, "ap": values}}] * 2

    for gain, better in ((0.05, True), (0.0, False)):
        own = [0.6 + 0.02 * i + gain for i in range(8)]
        kept = {"tasks": {"t": {"m": runs(own), probe.twin("m"): runs([v - gain for v in own])}}}
        assert probe.beats_its_twin(kept, "m") == better


def test_a_patient_whom_several_seeds_judge_is_one_patient():
    runs = [
        {"patients": names, "linear": {"auroc": values}}
        for names, values in ((["a", "b"], [0.2, 0.6]), (["b", "c"], [0.8, 1.0]))
    ]
    assert by_patient(runs, "linear", "auroc").tolist() == pytest.approx([0.2, 0.7, 1.0])


@pytest.mark.slow
def test_the_results_page_names_every_model_with_its_size_and_licence():
    rows = {
        line.split("|")[1].replace(" (baseline only)", "").strip(): line
        for line in trials.RESULTS_PAGE.read_text().splitlines()
        if line.startswith("| `")
    }
    for name, spec in MODELS.items():
        row = rows[f"`{name}`"]
        licence = spec.licence.replace("-", " ").replace("BY NC", "BY-NC")
        assert f"{spec.parameters / 1e6:.1f} M" in row and f"| {licence} |" in row, name
        assert ("(baseline only)" in row) == spec.baseline_only, name


def test_rows_of_other_weights_of_a_name_are_not_averaged_with_new_ones(tmp_path):
    results, settings = tmp_path / "r.json", Settings()
    row = {"seed": 0, "spacing_mm": 1.5, "settings": dataclasses.asdict(settings), "mean_dsc": 0.5}
    trials.keep(results, "command", "old", row)
    trials.keep(results, "command", "new", row | {"weights": "a"})
    assert trials.done(results, "old", settings, 1.5, "b") and trials.done(results, "new", settings, 1.5, "a")
    assert not trials.done(results, "new", dataclasses.replace(settings, seed=1), 1.5, "a")
    with pytest.raises(SystemExit, match="rows of new with other weights of this name"):
        trials.done(results, "new", settings, 1.5, "b")
    assert trials.weights_of("vit-scratch") == "" and len(trials.weights_of("vit-wild-mim")) == 64


def test_crops_are_kept_by_all_settings_but_their_number(tmp_path):
    names = {
        patients.crops_file(tmp_path, dataclasses.replace(Settings(), **change))
        for change in ({}, {"steps": 7}, {"warp": 0.123}, {"seed": 1})
    }
    assert len(names) == 3
