"""Scans that a model was pretrained on are recognised."""

import pytest

from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases


def test_it_is_said_when_nobody_knows_what_a_model_has_seen(labelled, encoder, tmp_path):
    folder = encoder.save_pretrained(tmp_path / "theirs")
    (found,) = problems(find_cases(labelled), model=folder)
    assert found.code == "unknown-pretraining" and "whether these are among them is unknown" in found.message


def test_a_scan_of_the_pretraining_is_recognised_by_its_series(data):
    """The self models have seen STS_008 cut and as NIfTI; the whole DICOM series has other voxels."""
    pytest.importorskip("pydicom")
    cases = find_cases(data / "dicom")
    (found,) = problems(cases, model="vit-self-mim")
    assert (found.code, found.case) == ("pretrained", "STS_008")
    assert problems(cases, model="vit-wild-mim") == []


@pytest.mark.slow
def test_scans_of_the_pretraining_are_recognised_and_no_others(data):
    for model, group, expected in (("swin-self-mim", "sarcoma", 26), ("swin-wild-mim", "sarcoma", 0)):
        found = problems(find_cases(data / group), model=model)
        assert [p.code for p in found] == ["pretrained"] * expected
        from training.data.corpora import split

        assert not {p.case for p in found} & set(split("test"))
