"""A model says where a scan, or its own mask, is unlike everything it was trained on."""

import json
import shutil
import warnings

import numpy as np
import pytest

import ctssl
from ctssl.hub.client import CONFIG
from ctssl.inference.ranges import unlike_training
from ctssl.scan_checks import ScanWarning
from ctssl.volume.volume import Volume
from tests.support.tiny import QUICK

KNOWN = {"longest_mm": 92.0, "volume_ml": {"1": [0.5, 40.0]}}


def mask_of(shape: tuple[int, ...], marked: int) -> Volume:
    array = np.zeros(shape, np.uint8)
    array.reshape(-1)[:marked] = 1
    return Volume(array, np.diag([2.0, 2.0, 2.0, 1.0]), "case")


@pytest.mark.parametrize(
    ("shape", "ml", "words"),
    [
        ((46, 46, 46), 10, ()),
        ((200, 46, 46), 10, ("400 mm long", "at most 92 mm", "crop the scan")),
        ((46, 46, 46), 400, ("400 ml of tumour", "at most 40 ml", "do not trust")),
        ((46, 46, 46), 0, ()),
    ],
)
def test_long_scans_and_large_masks_are_told(shape, ml, words):
    found = unlike_training(KNOWN, {1: "tumour"}, mask_of(shape, round(ml * 1000 / 8)))
    assert len(found) == bool(words) and all(word in found[0] for word in words)


def test_a_model_without_a_range_says_nothing():
    assert unlike_training({}, {1: "tumour"}, mask_of((400, 40, 40), 40**3)) == []


def test_a_fine_tuned_model_remembers_its_cases_and_warns(labelled, tiny, tmp_path):
    ctssl.finetune(labelled, model=tiny, out=tmp_path / "m", settings=QUICK, hold_out=0, progress=False)
    net = ctssl.load_segmenter(tmp_path / "m")
    sides, volumes = [], []
    for path in sorted((labelled / "labels").iterdir()):
        mask = ctssl.read(path)
        sides.append(max(n * s for n, s in zip(mask.shape, mask.spacing_mm, strict=True)))
        volumes.append((mask.array > 0).sum() * np.prod(mask.spacing_mm) / 1000)
    assert net.training_range["longest_mm"] == pytest.approx(max(sides), abs=0.1)
    assert net.training_range["volume_ml"]["1"] == pytest.approx([min(volumes), max(volumes)], rel=1e-3)
    scan = next((labelled / "images").iterdir())
    with warnings.catch_warnings():
        warnings.simplefilter("error", ScanWarning)
        net.training_range["volume_ml"]["1"][1] = 1e9  # a net of one step marks anything
        net.segment(scan)
    net.training_range["longest_mm"] = 10.0
    with pytest.warns(ScanWarning, match="trained on scans of at most 10 mm"):
        net.segment(scan)


def test_a_strange_range_is_refused(tiny_segmenter, tmp_path):
    folder = shutil.copytree(tiny_segmenter, tmp_path / "m")
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(config | {"training_range": {"volume_ml": [1]}}))
    with pytest.raises(ValueError, match="invalid training_range"):
        ctssl.load_segmenter(folder)
