"""Two reconstructions of one acquisition: what is kept of each training, and what the study shows of them."""

import json
import math

import pytest

from training.experiments import kernels, lung, trials
from training.experiments.shifts_proof import PAIRS


def test_a_training_is_measured_once_and_shown_as_a_mean_over_its_seeds(tmp_path, monkeypatch, capsys):
    asked = []

    def agreement(net, pairs, *, progress):
        asked.append(net)
        seed = len(asked) - 1
        return [
            {
                "pair": name,
                "label": 1,
                "dsc": 0.8 + 0.1 * seed,
                "first_ml": 10.0,
                "second_ml": 20.0 + 4 * seed,
            }
            | {
                "volume_difference": 0.5,
                "embedding_cosine": 0.9,
                "embedding_concordance": 0.9,
                "covered": 1.0,
            }
            for name in PAIRS
        ]

    monkeypatch.setattr(kernels, "RESULTS", tmp_path / "kernels.json")
    monkeypatch.setattr(kernels, "pairs", list)
    monkeypatch.setattr(kernels, "agreement", agreement)
    monkeypatch.setattr(kernels.ctssl, "load_segmenter", lambda source: getattr(source, "name", source))
    for seed in (0, 1):
        trials.folder_of(lung.EXPERIMENT, tmp_path, "vit-scratch, 50 cases", seed).mkdir()
    arguments = ["kernels", "vit-scratch", "--runs", str(tmp_path)]
    for _ in range(2):  # the second time nothing is left to measure
        monkeypatch.setattr("sys.argv", arguments)
        kernels.main()
    assert asked == ["lung-vit-scratch-50cases-0", "lung-vit-scratch-50cases-1"]
    assert "lung-vit-scratch-50cases-2 is not there" in capsys.readouterr().out
    released = kernels.RELEASED[0]
    for _ in range(2):
        monkeypatch.setattr("sys.argv", ["kernels", released])
        kernels.main()
    assert asked[2:] == [released]  # it is one model, whatever the seed
    models = json.loads((tmp_path / "kernels.json").read_text())["models"]
    row, _ = kernels.table_rows(models)
    assert (row["start"], row["trainings"]) == ("vit-scratch", 2)
    assert row["DSC of the two masks"] == pytest.approx(0.85)
    assert all(row[f"{name}: ml, smooth and sharp"] == "10 and 22" for name in PAIRS)
    nothing = [
        {**one, "pairs": [{**pair, "dsc": math.nan} for pair in one["pairs"]]}
        for one in models["vit-scratch"]
    ]
    assert math.isnan(
        kernels.table_rows({"vit-scratch": nothing})[0]["DSC of the two masks"]
    )  # both masks empty
