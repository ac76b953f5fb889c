"""Swins of other people: what an imported encoder computes is what its source computes."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR

import ctssl
from ctssl.convert.importing import import_checkpoint
from tests.support.foreign import OldPatchMerging, randomise, smit_features, smit_state
from tests.support.importing import SIZES, SMIT, agree, imported, monai_swin, prefixed, save_plainly


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.slow
@pytest.mark.parametrize("container, qkv_bias", [("flat", False), ("state_dict", True), ("student", True)])
def test_smit_in_each_of_its_containers(tmp_path, container, qkv_bias):
    state = smit_state(**SMIT, qkv_bias=qkv_bias)
    other = {
        "decoder1.weight": torch.ones(3),
        "head.mlp.0.weight": torch.ones(2, 2),
        "norm.weight": torch.ones(48),
    }
    content = {
        "flat": prefixed(state | other, "module."),
        "state_dict": {
            "state_dict": prefixed(state, "transformer.") | other,
            "optimizer": {"state": {0: torch.ones(2)}},
        },
        "student": {
            "student": prefixed(state, "module.backbone.transformer.") | prefixed(other, "module.backbone."),
            "teacher": prefixed(state, "backbone.transformer."),
        },
    }[container]
    torch.save(
        content, tmp_path / "smit.pt", _use_new_zipfile_serialization=container != "flat"
    )  # the first is of 2022
    done = import_checkpoint(tmp_path / "smit.pt", out=tmp_path / "smit", family="smit")
    encoder = ctssl.load(tmp_path / "smit")
    assert encoder.config["qkv_bias"] is qkv_bias and encoder.config["depths"] == SMIT["depths"]
    for size in SIZES if container == "flat" else [64]:
        agree(encoder, lambda x: smit_features(state, x, window=4), size)
    if container == "state_dict":
        assert done.skipped == {"optimizer": 1}
    assert {entry["action"] for entry in done.keys} >= {"renamed", "changed", "left out"}


@pytest.mark.slow
@pytest.mark.parametrize("merging", ["1.4", "1.5", "v2"])
def test_a_monai_swinunetr_under_each_merging(tmp_path, merging):
    downsample = {"1.4": OldPatchMerging, "1.5": "merging", "v2": "mergingv2"}[merging]
    theirs = randomise(
        SwinUNETR(
            1,
            3,
            feature_size=12,
            num_heads=(1, 2, 2, 4),
            depths=(2, 1, 1, 1),
            window_size=4,
            downsample=downsample,
        )
    )
    encoder, done = imported(
        tmp_path, {"state_dict": theirs.state_dict()}, family="monai-swinunetr", merging=merging
    )
    for size in SIZES:
        agree(encoder, theirs.swinViT, size)
    wrong = {"1.4": "1.5", "1.5": "1.4", "v2": "1.5"}[merging]
    other, _ = imported(tmp_path, {"state_dict": theirs.state_dict()}, merging=wrong)
    x = torch.rand(1, 1, 64, 64, 64)
    with torch.no_grad():
        assert (other(x)[-1] - theirs.swinViT(x)[-1]).abs().max() > 0.1, "the wrong merging is not to be seen"
    assert {e["how"] for e in done.keys if e["key"].startswith("state_dict/decoder")} == {
        "outside the encoder: decoder"
    }


def test_monais_merging_has_to_be_told(tmp_path):
    file = save_plainly(monai_swin().state_dict(), tmp_path / "bare.safetensors")
    with pytest.raises(ValueError, match=r"--merging 1\.4 .* --merging 1\.5"):
        import_checkpoint(file, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_monais_self_supervised_swinvit(tmp_path, size):
    theirs = monai_swin(window_size=(7, 7, 7))
    state = {k.replace("linear", "fc"): v for k, v in theirs.state_dict().items()}
    state |= {
        "norm.weight": torch.ones(96),
        "norm.bias": torch.zeros(96),
        "rotation_head.weight": torch.ones(4, 192),
        "contrastive_head.weight": torch.ones(512, 192),
        "conv.0.weight": torch.ones(96, 192, 3, 3, 3),
    }
    encoder, done = imported(tmp_path, {"epoch": 1, "state_dict": prefixed(state, "module.")}, merging="1.5")
    assert done.family == "monai-swinvit" and encoder.spec.preprocess.window_hu == (-1000, 1000)
    agree(encoder, theirs, size)
    assert {e["key"] for e in done.keys} == {f"state_dict/module.{key}" for key in state}


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["backbone.swinViT.", "module.backbone.swinViT.", "encoder."])
def test_swin_unetr_v2_under_prefixes_of_its_own(tmp_path, prefix):
    theirs = monai_swin(use_v2=prefix != "encoder.", patch_norm=prefix == "encoder.")
    state = prefixed(theirs.state_dict(), prefix)
    if prefix == "encoder.":  # the disruptive autoencoders': one more level of layers
        state = {
            k.replace(".0.blocks", ".0.0.blocks").replace(".0.down", ".0.0.down"): v for k, v in state.items()
        }
    encoder, done = imported(tmp_path, {"net": state}, merging="1.5")
    assert encoder.config.get("convs", False) is (prefix != "encoder.") and done.family == "monai-swinunetr"
    for size in SIZES:
        agree(encoder, theirs, size)
