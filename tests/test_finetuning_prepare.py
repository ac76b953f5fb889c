"""Labelled scans on the grid of the model, and bad data refused before any training."""

import pytest

import ctssl
from ctssl.finetuning.prepare import name_labels, onto_grid
from ctssl.volume.volume import Volume
from tests.support.tiny import QUICK


def test_bad_data_is_refused_before_any_training(labelled, tiny, tmp_path):
    def refused(words, kind=ValueError, **kwargs):
        with pytest.raises(kind, match=words):
            ctssl.finetune(
                **({"data": labelled} | kwargs),
                model=tiny,
                out=tmp_path / "m",
                settings=QUICK,
                hold_out=0,
                progress=False,
            )
        assert not (tmp_path / "m" / "model.safetensors").exists()

    refused("not both", images=labelled / "images")
    refused("no folder", FileNotFoundError, data=tmp_path / "nothing")
    refused("in a layout that ctssl knows", FileNotFoundError, data=tmp_path)
    label = labelled / "labels" / "case0.nii.gz"
    mask = ctssl.read(label)
    kept = label.read_bytes()
    moved = mask.affine.copy()
    moved[0, 3] += 40
    for words, wrong in (
        ("its mask", Volume(mask.array[:-1], mask.affine)),
        ("40.0 mm apart", Volume(mask.array, moved)),
        ("whole numbers", Volume(mask.array * 0.5, mask.affine)),
    ):
        wrong.save(label, overwrite=True)
        refused(words)
    label.write_bytes(kept)
    label.unlink()
    refused("case0", FileNotFoundError)
    label.write_bytes(kept)
    for path in (labelled / "labels").iterdir():
        Volume(mask.array * 0, mask.affine).save(path, overwrite=True)
    refused("masks are empty")


def test_labels_move_with_the_scan_onto_the_models_grid(ball):
    from ctssl.volume.grids import prepare
    from ctssl.zoo import Preprocess

    scan, mask = ball
    there = prepare(scan, Preprocess())
    moved = onto_grid(mask, there)
    assert moved.shape == there.shape
    volume_mm3 = mask.array.sum() * 12.0
    assert moved.sum() * 8.0 == pytest.approx(volume_mm3, rel=0.1)
    assert there.array[moved == 1].mean() > 0.66  # the ball is bright: 200 HU is 0.7


def test_few_patients_need_not_have_every_label_that_has_a_name():
    names = {1: "tumour", 2: "node"}
    assert name_labels(names, {}, {1}, whole=False) == names
    with pytest.raises(ValueError, match="masks hold labels 1..1"):
        name_labels(names, {}, {1})  # of all cases: a name too many
    with pytest.raises(ValueError, match="masks hold labels 1..3"):
        name_labels(names, {}, {1, 3}, whole=False)
