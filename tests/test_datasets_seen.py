"""Scans that a model was pretrained on are recognised."""

import json
import shutil
from pathlib import Path

import pytest

from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.seen import SEEN
from ctssl.hub import bundled


def test_it_is_said_when_nobody_knows_what_a_model_has_seen(labelled, encoder, tmp_path):
    folder = encoder.save_pretrained(tmp_path / "theirs")
    (found,) = problems(find_cases(labelled), model=folder)
    assert found.code == "unknown-pretraining" and "whether these are among them is unknown" in found.message


def test_a_scan_of_the_pretraining_is_recognised_by_its_series(data, tmp_path):
    """A model that has seen STS_008 cut and as NIfTI: the whole DICOM series has other voxels."""
    pytest.importorskip("pydicom")
    from training.data.seen import series_uids

    cases = find_cases(data / "dicom")
    folder = Path(shutil.copytree(bundled() / "vit-wild-mim", tmp_path / "theirs"))
    known = json.loads((folder / SEEN).read_text())
    (folder / SEEN).write_text(json.dumps(known | {"series": series_uids(data / "dicom" / "STS_008")}))
    (found,) = problems(cases, model=folder)
    assert (found.code, found.case) == ("pretrained", "STS_008")
    assert problems(cases, model="vit-wild-mim") == []


@pytest.mark.slow
def test_scans_of_the_pretraining_are_recognised_and_no_others(data):
    from training.data.corpora import lung_split

    for model, expected in (("swin-self-mim", 150), ("swin-wild-mim", 0)):
        found = problems(find_cases(data / "lung_radiomics_nc"), model=model)
        assert [p.code for p in found] == ["pretrained"] * expected
        assert not {p.case for p in found} & set(lung_split()["choose"])
