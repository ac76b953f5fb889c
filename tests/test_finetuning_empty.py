"""Scans of healthy people: how often they are drawn, and what they say about the threshold."""

import json

import numpy as np
import pytest
import torch

import ctssl
from ctssl.finetuning import threshold
from ctssl.finetuning.crops import PreparedCase, draw
from ctssl.finetuning.folds import mean_of_folds, save_folds
from ctssl.finetuning.report import Report
from tests.support.tiny import QUICK


def scan_of(value: float, label: int, name: str) -> PreparedCase:
    """A scan of one value; its label fills a corner of it."""
    image, labels = np.full((1, 24, 24, 24), value, np.float16), np.zeros((24, 24, 24), np.uint8)
    labels[:8, :8, :8] = label
    return PreparedCase(image, labels, np.eye(4), name, bool(label))


def test_healthy_scans_are_drawn_as_often_as_asked():
    scans = [*(scan_of(0.25, 1, f"ill{n}") for n in range(9)), scan_of(0.75, 0, "well")]
    plain = {"crop": 16, "batch": 200, "intensity": 0.0, "degrade": 0.0, "warp": 0.0, "trim": 0.0}
    for share, low, high in ((0.0, 0.03, 0.2), (0.5, 0.4, 0.6), (1.0, 1.0, 1.0)):
        images, _ = draw(scans, ctssl.Settings(**plain, empty=share), 0)
        assert low <= float((images.amax((1, 2, 3, 4)) > 0.5).float().mean()) <= high
    for some in (scans[:9], scans[9:]):  # of one kind alone: that kind
        images, _ = draw(some, ctssl.Settings(**plain, empty=0.5), 0)
        assert images.shape[0] == 200


def test_held_out_cases_without_a_lesion_do_not_say_that_nothing_was_learned(tmp_path):
    """What is marked there is wrong, and says nothing of the others; a fold without a score has none, and JSON no NaN."""
    curve = [{"step": 1, "loss": 1.0}]
    found = [
        Report(tmp_path, {"a": {"lesion": 0.0}}, ["t"], [], curve, 1.0, empty=empty)
        for empty in (True, False)
    ]
    assert [report.learned for report in found] == [True, False]
    none = Report(tmp_path, {"b": {}}, ["t"], [], curve, 1.0)
    assert mean_of_folds([none, Report(tmp_path, {"c": {"lesion": 0.5}}, ["t"], [], curve, 1.0)]) == 0.5
    text = save_folds(tmp_path / "folds.json", [none]).read_text()
    assert "NaN" not in text and json.loads(text)["mean_dsc"] is None


@pytest.mark.slow
def test_labels_that_are_too_small_for_the_working_grid_are_named(labelled, tiny, tmp_path):
    for path in (labelled / "labels").iterdir():
        mask = ctssl.read(path)
        mask.array[1:3, 1:3, 1] = 2
        mask.save(path, overwrite=True)
    how = dict(model=tiny, settings=QUICK, hold_out=["case2"], progress=False, spacing_mm=9.0)
    report = ctssl.finetune(labelled, out=tmp_path / "m", **how)
    assert any(
        "label 2 is too small" in note and "in 2 of 2 training cases" in note for note in report.warnings
    )
    for path in (labelled / "labels").iterdir():
        mask = ctssl.read(path)
        mask.array[mask.array == 1] = 0
        mask.array[mask.array == 2] = 1
        mask.save(path, overwrite=True)
    with pytest.raises(ValueError, match="no labelled voxel is left at 9 mm"):
        ctssl.finetune(labelled, out=tmp_path / "n", **how)


class Says(torch.nn.Module):
    """A network that gives the voxels of an image as probabilities of label 1."""

    classes, window, labels = 2, 24, {1: "lesion"}

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        p = x.clamp(0.001, 0.999)
        return torch.cat([torch.log1p(-p), torch.log(p)], 1)


def test_what_is_marked_in_healthy_scans_raises_the_threshold():
    """The lesion is sure at 0.95 in its middle and unsure (0.35) at its border; healthy tissue looks like its border."""
    ill = scan_of(0.05, 1, "ill")
    ill.image[0, :8, :8, :8] = 0.35
    ill.image[0, :7, :7, :7] = 0.95
    well = scan_of(0.35, 0, "well")
    assert threshold.choose_threshold(Says(), [ill]) in (0.2, 0.3)
    assert threshold.choose_threshold(Says(), [ill, well]) >= 0.4
    assert threshold.choose_threshold(Says(), [well]) == 0.5  # nothing to compare with
    assert threshold.validate(Says(), [ill, well]) == pytest.approx(threshold.validate(Says(), [ill]))


def test_no_higher_threshold_without_a_reason():
    """Where all thresholds are as good as each other, the usual one."""
    ill, well = scan_of(0.05, 1, "ill"), scan_of(0.05, 0, "well")
    ill.image[0, :8, :8, :8] = 0.95
    assert threshold.choose_threshold(Says(), [ill, well]) == 0.5


@pytest.mark.slow
def test_a_report_that_is_kept_knows_that_the_held_out_cases_are_empty(labelled, tiny, tmp_path):
    mask = ctssl.read(labelled / "labels" / "case2.nii.gz")
    mask.array[:] = 0
    mask.save(labelled / "labels" / "case2.nii.gz", overwrite=True)
    how = dict(model=tiny, settings=QUICK, hold_out=["case2"], progress=False, spacing_mm=9.0)
    first, kept = (ctssl.finetune(labelled, out=tmp_path / "m", keep=True, **how) for _ in range(2))
    assert first.empty and kept.empty and first.learned == kept.learned and first.held_out == kept.held_out
