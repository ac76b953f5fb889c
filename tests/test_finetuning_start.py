"""The encoder that a training starts from."""

import pytest
import torch

import ctssl
from ctssl.datasets.seen import seen_by
from ctssl.finetuning.start import fresh, open_start


def test_from_scratch_forgets_the_weights(tiny):
    other = fresh(tiny, seed=5)
    assert other.config == tiny.config and not torch.equal(
        other.patch_embed.proj.weight, tiny.patch_embed.proj.weight
    )


def test_interpolation_is_the_mean_of_the_weights_before_and_after(labelled, tiny_segmenter, tmp_path):
    weights = {}
    for share in (0.0, 0.25):
        how = ctssl.Settings(steps=3, crop=16, batch=1, interpolate=share)
        ctssl.finetune(
            labelled, model=tiny_segmenter, out=tmp_path / str(share), settings=how, progress=False
        )
        weights[share] = ctssl.load_segmenter(tmp_path / str(share)).state_dict()
    before = ctssl.load_segmenter(tiny_segmenter).state_dict()
    for key, value in weights[0.0].items():
        torch.testing.assert_close(weights[0.25][key], 0.25 * before[key] + 0.75 * value)
    assert any(not torch.equal(value, before[key]) for key, value in weights[0.0].items())


def test_interpolation_needs_a_head_for_the_same_labels(labelled, tiny_folder, tmp_path):
    how = ctssl.Settings(steps=3, crop=16, batch=1, interpolate=0.5)
    with pytest.raises(ValueError, match="brings none"):
        ctssl.finetune(labelled, model=tiny_folder, out=tmp_path / "m", settings=how, progress=False)


def test_a_model_in_memory_is_known_by_its_weights_and_by_what_it_has_seen():
    loaded = ctssl.load("vit-wild-mim")
    named, given = (open_start(one, "", from_scratch=False, seed=0) for one in ("vit-wild-mim", loaded))
    assert given.weights == named.weights == ctssl.info("vit-wild-mim").sha256
    assert seen_by(given.folder) == seen_by(named.folder) and seen_by(given.folder)["voxels"]
    whole = open_start(ctssl.segmenter(loaded), "", from_scratch=False, seed=0)
    assert whole.weights != named.weights and seen_by(whole.folder) == seen_by(named.folder)
    with torch.no_grad():
        loaded.patch_embed.proj.weight.add_(1.0)
    assert open_start(loaded, "", from_scratch=False, seed=0).weights not in (named.weights, "")
