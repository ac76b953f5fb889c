"""The linear probe of frozen features."""

import json

import numpy as np
import pytest
import torch

from ctssl.cli import main
from ctssl.finetuning import probe, probe_fits, probe_voxels
from ctssl.phantom import phantom


def test_auroc_and_average_precision_are_their_definitions():
    rng = np.random.default_rng(0)
    for _ in range(20):
        truth = np.array([True, False, *(rng.random(28) < 0.4)])
        scores = np.round(rng.normal(size=30) + truth, 1)  # with ties
        wins = [(a > b) + 0.5 * (a == b) for a in scores[truth] for b in scores[~truth]]
        assert probe_fits.auroc(scores, truth) == pytest.approx(np.mean(wins))
        area, before = 0.0, 0.0
        for threshold in sorted(set(scores), reverse=True):
            chosen = scores >= threshold
            recall = (truth & chosen).sum() / truth.sum()
            area += (recall - before) * (truth & chosen).sum() / chosen.sum()
            before = recall
        assert probe_fits.average_precision(scores, truth) == pytest.approx(area)


def test_both_probes_find_what_is_there_and_nothing_where_nothing_is():
    generator = torch.Generator().manual_seed(0)

    def rows(strength):
        truth = torch.arange(400) % 2 == 0
        x = torch.randn(400, 6, generator=generator) + strength * truth[:, None]
        return probe_voxels.Rows(x, truth, torch.arange(400) // 100)

    for name in ("linear_scores", "neighbour_scores"):
        found = [
            np.mean(probe_fits.judged(getattr(probe_fits, name)(rows(s), rows(s)), rows(s)), 0)[0]
            for s in (1.0, 0.0)
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
    cube = probe_voxels.Cube(np.zeros((12, 16, 20), np.float32), voxels, np.array([True, False, False]))
    torch.testing.assert_close(
        probe_voxels.encoded(Places())([cube, cube]), torch.from_numpy(voxels).float().repeat(2, 1)
    )


@pytest.mark.slow
def test_the_place_of_a_voxel_tells_nothing_even_in_scans_with_the_tumour_in_their_middle():
    image = np.ones((64, 64, 64), np.float32)
    tumour = np.zeros(image.shape, bool)
    tumour[28:36, 28:36, 28:36] = True
    group = [probe_voxels.ProbedScan(str(n), image, tumour) for n in range(30)]
    for run in probe_fits.measure_each(group, [probe_voxels.position] * 2):
        assert np.mean(run["linear"]["auroc"]) < 0.6
    for cube in probe_voxels.cubes(group[0], np.random.default_rng(0)):
        assert cube.tumour.sum() == (~cube.tumour).sum() == probe_voxels.PER_CUBE


@pytest.fixture
def six(tmp_path):
    """Six phantoms with masks."""
    for side in ("images", "labels"):
        (tmp_path / "data" / side).mkdir(parents=True)
    for number in range(6):
        scan, mask = phantom(6.0, seed=number)
        scan.save(tmp_path / "data" / "images" / f"p{number}.nii.gz")
        mask.save(tmp_path / "data" / "labels" / f"p{number}.nii.gz")
    return tmp_path / "data"


def test_models_are_compared_with_the_last_one_by_patient(six, tmp_path, capsys):
    ask = ["probe", str(six), "--models", "vit-tiny-random", "vit-scratch", "--seeds", "1", "--spacing", "6"]
    assert main([*ask, "--out", str(tmp_path / "out")]) == 0
    assert "against vit-scratch" in capsys.readouterr().out
    kept = json.loads((tmp_path / "out" / "probe.json").read_text())
    rows = {row["model"]: row for row in kept["rows"]}
    assert list(rows) == [probe.PLACE, probe.GREY, "vit-tiny-random", "vit-scratch"]
    assert all(0 <= row["low"] <= row["auroc"] <= row["high"] <= 1 for row in rows.values())
    gain = rows["vit-tiny-random"]
    assert gain["gain"] == pytest.approx(gain["auroc"] - rows["vit-scratch"]["auroc"])
    assert "gain" not in rows["vit-scratch"] and len(kept["runs"]["vit-scratch"][0]["patients"]) == 2
    assert main([*ask, "--out", str(tmp_path / "out")]) == 2 and "exists" in capsys.readouterr().err


def test_what_cannot_be_probed_is_said(six, capsys):
    for name in ("images", "labels"):
        (six / name / "p0.nii.gz").unlink()
    assert main(["probe", str(six), "--models", "vit-tiny-random", "--spacing", "6"]) == 2
    assert "at least 6 patients" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no features"):
        probe.probe(six, models=["dynunet"])
    with pytest.raises(ValueError, match="different"):
        probe.probe(six, models=["vit-scratch", "vit-scratch"])
    with pytest.raises(ValueError, match="seeds=0"):
        probe.probe(six, models=["vit-scratch"], seeds=0)


def test_the_scans_of_a_patient_are_held_out_together():
    image, tumour = np.ones((36, 36, 36), np.float32), np.zeros((36, 36, 36), bool)
    tumour[12:24, 12:24, 12:24] = True
    group = [
        probe_voxels.ProbedScan(f"p{n // 3}", image, tumour) for n in range(18)
    ]  # six patients, three scans each
    for run in probe_fits.measure_each(group, [probe_voxels.position] * 3):
        assert len(run["patients"]) == len(set(run["patients"])) == len(run["linear"]["auroc"]) == 2


def test_a_patient_without_other_tissue_in_the_cubes_is_not_judged():
    image, tumour = np.ones((36, 36, 36), np.float32), np.zeros((36, 36, 36), bool)
    tumour[12:24, 12:24, 12:24] = True
    group = [probe_voxels.ProbedScan(f"p{n}", image, tumour) for n in range(7)]
    group.append(probe_voxels.ProbedScan("full", image, np.ones_like(tumour)))
    for run in probe_fits.measure_each(group, [probe_voxels.position] * 4):
        assert "full" not in run["patients"] and len(run["patients"]) == len(run["knn"]["auroc"])
