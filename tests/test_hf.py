"""transformers' Auto classes on ctssl's folders; needs transformers itself."""

import json

import numpy as np
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


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_a_type_is_taken_by_its_name_too(folder, ball, dtype):
    model = AutoModel.from_pretrained(folder, dtype=dtype)
    assert model.dtype == torch.bfloat16
    image = AutoImageProcessor.from_pretrained(folder)(ball[0])["pixel_values"]
    assert model(image).last_hidden_state.dtype == torch.bfloat16  # the image goes along
    assert AutoModel.from_pretrained(folder, dtype="auto").dtype == torch.float32


def test_maps_are_chosen(folder, ball):
    image = AutoImageProcessor.from_pretrained(folder)(ball[0])["pixel_values"]
    chosen = ctssl.hf.CtsslBackbone.from_pretrained(folder, out_indices=[0, -1])
    maps = chosen.encoder(image)
    found = chosen(image).feature_maps
    assert len(found) == 2 and torch.equal(found[0], maps[0]) and torch.equal(found[1], maps[-1])
    assert chosen.channels == [maps[0].shape[1], maps[-1].shape[1]]
    for wrong in ([9], []):
        with pytest.raises(ValueError, match="has the maps 0 to"):
            ctssl.hf.CtsslBackbone.from_pretrained(folder, out_indices=wrong)


def test_what_would_change_nothing_is_refused(folder, ball):
    for arguments in ({"num_channels": 2}, {"device_map": "cuda"}, {"out_features": ["stage1"]}):
        with pytest.raises(TypeError, match=f"does not know {next(iter(arguments))}"):
            AutoModel.from_pretrained(folder, **arguments)
    with pytest.raises(ValueError, match="invalid dtype='int8'"):
        AutoModel.from_pretrained(folder, dtype="int8")
    processor, model = AutoImageProcessor.from_pretrained(folder), AutoModel.from_pretrained(folder)
    with pytest.raises(TypeError, match="spacing_mm"):
        processor(ball[0], spacing_mm=3.0)
    with pytest.raises(ValueError, match="invalid return_tensors"):
        processor(ball[0], return_tensors="tf")
    batch = processor(ball[0], return_tensors="np")["pixel_values"]
    assert isinstance(batch, np.ndarray)
    image = torch.from_numpy(batch)
    assert model(image, output_hidden_states=False).hidden_states is None
    assert isinstance(model(image, return_dict=False), tuple)
    with pytest.raises(TypeError, match="output_attentions"):
        model(image, output_attentions=True)


def test_scans_of_different_sizes_are_no_batch(folder, ball, chest):
    with pytest.raises(ValueError, match="different sizes"):
        AutoImageProcessor.from_pretrained(folder)([ball[0], chest])
