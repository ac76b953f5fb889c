"""Numbers in RESULTS.md and the cards are those of the result files."""

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from ctssl import Settings
from ctssl.zoo import MODELS
from training.data.corpora import lung_split, nodule_split, split
from training.experiments import lung, lung_nodules, probe, sarcoma, trials
from training.release.card import card, strictest
from training.release.segmenter import TASKS
from training.release.segmenter import card as segmenter_card

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("sarcoma", sarcoma.table),
        ("lung-nodule", lung_nodules.table),
        ("lung", lung.table),
        ("probe", probe.short),
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
    encoders = {name: spec.sha256 for name, spec in MODELS.items() if spec.kind == "encoder"}
    assert weights == {"sarcoma": encoders, "lung_nodules": encoders}


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
    task = next(task for task in TASKS if name.startswith(f"{task}-"))
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
    }[task]()
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
    for closed in ("CC BY-NC 3.0", "unknown"):
        with pytest.raises(ValueError, match="does not allow publishing"):
            of("CC BY 3.0", closed)


# --- the probe ---


def test_auroc_and_average_precision_are_their_definitions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = np.array([True, False, *(rng.random(28) < 0.4)])
        scores = np.round(rng.normal(size=30) + truth, 1)  # with ties
        wins = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
        assert probe.auroc(scores, truth) == pytest.approx(np.mean(wins))
        area, before = 0.0, 0.0
        for threshold in sorted(set(scores), reverse=True):
            chosen = scores >= threshold
            recall = (truth & chosen).sum() / truth.sum()
            area += (recall - before) * (truth & chosen).sum() / chosen.sum()
            before = recall
        assert probe.average_precision(scores, truth) == pytest.approx(area)


def test_both_probes_find_what_is_there_and_nothing_where_nothing_is():
    generator = torch.Generator().manual_seed(0)

    def rows(strength):
        truth = torch.arange(400) % 2 == 0
        x = torch.randn(400, 6, generator=generator) + strength * truth[:, None]
        return probe.Rows(x, truth, torch.arange(400) // 100)

    for name in ("linear_scores", "neighbour_scores"):
        found = [
            np.mean(probe.judged(getattr(probe, name)(rows(s), rows(s)), rows(s)), 0)[0] for s in (1.0, 0.0)
        ]
        assert found[0] > 0.9 and abs(found[1] - 0.5) < 0.12


def test_a_voxel_gets_the_feature_of_its_own_place():
    class Places(torch.nn.Module):
        """One map at stride 2 that holds the coordinates of its cells, in voxels."""

        channels, strides = (3,), (2,)

        def __init__(self):
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x):
            axes = [torch.arange(n // 2) * 2 + 0.5 for n in x.shape[2:]]
            return [torch.stack(torch.meshgrid(*axes, indexing="ij")).expand(len(x), -1, -1, -1, -1)]

    voxels = np.array([[3, 8, 10], [5, 1, 17], [9, 9, 9]])
    cube = probe.Cube(np.zeros((12, 16, 20), np.float32), voxels, np.array([True, False, False]))
    torch.testing.assert_close(
        probe.encoded(Places())([cube, cube]), torch.from_numpy(voxels).float().repeat(2, 1)
    )


@pytest.mark.slow
def test_the_place_of_a_voxel_tells_nothing_even_in_scans_with_the_tumour_in_their_middle():
    image = np.ones((64, 64, 64), np.float32)
    tumour = np.zeros(image.shape, bool)
    tumour[28:36, 28:36, 28:36] = True
    group = [probe.Scan(str(n), image, tumour) for n in range(30)]
    for run in probe.measure(group, probe.position, seeds=2):
        assert np.mean(run["linear"]["auroc"]) < 0.6
    for cube in probe.cubes(group[0], np.random.default_rng(0)):
        assert cube.tumour.sum() == (~cube.tumour).sum() == probe.PER_CUBE


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
        "task", "command", lambda: tmp_path, [], tmp_path / "r.json", [], {"dynunet": 0.5}, Settings(steps=10)
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
    assert probe.patients(runs, "linear", "auroc").tolist() == pytest.approx([0.2, 0.7, 1.0])


@pytest.mark.slow
def test_the_results_page_names_every_model_with_its_size_and_licence():
    rows = {
        line.split("|")[1].replace(" (baseline only)", "").strip(): line
        for line in trials.RESULTS_PAGE.read_text().splitlines()
        if line.startswith("| `")
    }
    for name, spec in MODELS.items():
        row = rows[f"`{name}`"]
        assert f"{spec.parameters / 1e6:.1f} M" in row and spec.licence.replace("-", " ") in row, name
        assert ("(baseline only)" in row) == spec.baseline_only, name
