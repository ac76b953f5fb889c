"""The tiny random models, for tests of other software."""

import pytest
import torch

import ctssl
from ctssl.hub.lookup import TINY
from training.release import tiny


@pytest.mark.parametrize("kind", ["swin", "vit"])
def test_tiny_models_load_by_name_and_stay_out_of_the_list(kind):
    name = f"{kind}-tiny-random"
    encoder = ctssl.load(name)
    assert sum(p.numel() for p in encoder.parameters()) < 1_000_000
    assert encoder.strides[-1] == ctssl.load(f"{kind}-wild-mim").strides[-1]
    assert ctssl.segmenter(name)(torch.rand(1, 1, 32, 32, 32)).shape == (1, 2, 32, 32, 32)
    assert name not in ctssl.list_models()
    assert sum(file.stat().st_size for file in (TINY / name).iterdir()) < 200_000


def test_tiny_models_are_what_their_script_writes(tmp_path):
    tiny.main(tmp_path)
    for name in ("swin-tiny-random", "vit-tiny-random"):
        ours, again = (ctssl.load(folder / name).state_dict() for folder in (TINY, tmp_path))
        assert all(torch.equal(value, again[key]) for key, value in ours.items())


def test_other_names_are_not_looked_for_there():
    with pytest.raises(FileNotFoundError):
        ctssl.load("resnet-tiny-random")
