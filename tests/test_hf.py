"""transformers' Auto classes on ctssl's folders; needs transformers itself."""

import json

import pytest
import torch

import ctssl
from tests.support.tiny import tiny_swin

pytest.importorskip("transformers", reason='needs transformers: pip install "ctssl[transformers]"')

from transformers import AutoBackbone, AutoConfig, AutoImageProcessor, AutoModel

import ctssl.hf


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tiny_swin().save_pretrained(tmp_path_factory.mktemp("hf") / "tiny"))


def test_features_are_those_of_ctssl(folder, ball):
    encoder, processor = ctssl.load(folder), AutoImageProcessor.from_pretrained(folder)
    image = processor(ball[0], return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(image, encoder.preprocess(ball[0]))
    model, backbone = AutoModel.from_pretrained(folder), ctssl.hf.CtsslBackbone.from_pretrained(folder)
    with torch.inference_mode():
        maps, found, features = encoder(image), model(image), backbone(pixel_values=image).feature_maps
    for one, two, three in zip(maps, found.hidden_states, features, strict=True):
        assert torch.equal(one, two) and torch.equal(one, three)
    assert torch.equal(found.pooler_output, encoder.forward_head(maps[-1]))
    assert backbone.channels == list(encoder.channels) and not model.training


def test_auto_backbone_knows_the_class(folder):
    """Its `from_pretrained` takes repositories only, never folders."""
    assert isinstance(AutoBackbone.from_config(AutoConfig.from_pretrained(folder)), ctssl.hf.CtsslBackbone)


def test_what_transformers_saves_ctssl_loads(folder, tmp_path):
    model = AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    for key, value in ctssl.load(tmp_path / "again").state_dict().items():
        assert torch.equal(value, ctssl.load(folder).state_dict()[key])
    assert AutoConfig.from_pretrained(tmp_path / "again").encoder == "swin"


def test_a_segmenter_gives_its_encoder(tiny_segmenter, ball):
    model = AutoModel.from_pretrained(str(tiny_segmenter))
    for key, value in ctssl.load(tiny_segmenter).state_dict().items():
        assert torch.equal(model.encoder.state_dict()[key], value)


def test_damaged_weights_are_refused_here_too(folder, tmp_path):
    import shutil

    shutil.copytree(folder, tmp_path / "bad")
    config = json.loads((tmp_path / "bad" / "config.json").read_text()) | {"sha256": "0" * 64}
    (tmp_path / "bad" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="damaged or was changed"):
        AutoModel.from_pretrained(tmp_path / "bad")


def test_scans_of_different_sizes_are_no_batch(folder, ball, chest):
    with pytest.raises(ValueError, match="different sizes"):
        AutoImageProcessor.from_pretrained(folder)([ball[0], chest])
