"""Scans that a model was pretrained on are recognised."""

import json
import shutil
from pathlib import Path

import pytest
import torch

import ctssl
from ctssl.datasets.checks import problems
from ctssl.datasets.layouts import find_cases
from ctssl.datasets.seen import SEEN, salted
from ctssl.hub import bundled
from ctssl.volume.volume import voxel_hash


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


def test_a_copy_of_a_model_keeps_the_list_of_its_scans(labelled, tmp_path):
    """Unless its weights have changed since, for which there may be more scans."""
    from ctssl.datasets.seen import seen_after, seen_by

    own = ctssl.segmenter("vit-tiny-random")
    scan = ctssl.read(labelled / "images" / "case0.nii.gz")
    hashes = [salted(voxel_hash(scan), "ours")]
    first = own.save_pretrained(tmp_path / "first", extra={SEEN: seen_after(None, hashes, salt="ours")})
    copy = ctssl.load_segmenter(first)
    copy.save_pretrained(tmp_path / "copy")
    assert seen_by(tmp_path / "copy") == seen_by(first) and seen_by(first)["labelled"] == hashes
    (found,) = problems(find_cases(labelled), model=tmp_path / "copy")
    assert (found.code, found.case) == ("pretrained", "case0") and "and a mask of it" in found.message
    with torch.no_grad():
        next(copy.parameters()).add_(0.1)
    copy.save_pretrained(tmp_path / "trained")
    assert seen_by(tmp_path / "trained") == {**seen_by(first), "partial": True}
    found = problems(find_cases(labelled), model=tmp_path / "trained")
    assert {one.code for one in found} == {"pretrained", "unknown-pretraining"}
    encoder = ctssl.load("vit-wild-mim").save_pretrained(tmp_path / "encoder")
    assert seen_by(encoder) == seen_by("vit-wild-mim")


def test_what_nobody_knows_stays_unknown_after_a_fine_tuning(encoder, tmp_path):
    from ctssl.datasets.seen import incomplete, seen_after

    assert incomplete(json.loads(seen_after({}, ["a"], salt="s")))
    assert incomplete(json.loads(seen_after({"voxels": ["b"], "partial": True}, ["a"], salt="s")))
    assert not incomplete(json.loads(seen_after(None, ["a"], salt="s"))) and not incomplete(None)
    assert not incomplete(json.loads(seen_after({"voxels": ["b"]}, ["a"], salt="s")))


def test_a_segmenter_without_a_list_has_seen_more_than_the_encoder_it_came_from(tmp_path):
    from ctssl.datasets.seen import seen_by

    folder = ctssl.segmenter("vit-wild-mim").save_pretrained(tmp_path / "theirs")
    (folder / SEEN).unlink()
    assert seen_by(folder) == {**seen_by("vit-wild-mim"), "partial": True}


def test_a_series_in_a_table_is_recognised_by_its_header(tmp_path):
    pytest.importorskip("pydicom")
    from tests.support.dicom import write_series

    write_series(tmp_path / "ct", uid="1.2.34")
    scan = ctssl.read(tmp_path / "ct")
    scan.on_grid((scan.array > 0).astype("uint8")).save(tmp_path / "mask.nii.gz")
    (tmp_path / "cases.csv").write_text("image,label\nct,mask.nii.gz\n")
    folder = ctssl.load("vit-tiny-random").save_pretrained(tmp_path / "theirs")
    (folder / SEEN).write_text(json.dumps({"scheme": 2, "salt": "s", "voxels": [], "series": ["1.2.34"]}))
    found = problems(find_cases(tmp_path / "cases.csv"), model=folder)
    assert "pretrained" in {one.code for one in found}
