"""Our encoders elsewhere: in MONAI, as a program, as ONNX; equal there, or refused in words."""

import sys

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinUNETR
from torch.nn import functional as F

import ctssl
from ctssl.cli import main
from tests.support.foreign import randomise

LIKE_MONAI = dict(width=12, depths=(2, 1, 1, 1), heads=(1, 2, 2, 4), window=4, maps="after", sliced_bias=True)
SIZE = (24, 40, 17)
SMALL = {
    "swin": lambda: ctssl.Swin(12, depths=(1, 2), heads=(2, 4), window=4),
    "vit": lambda: ctssl.ViT(24, depth=2, heads=2, patch=8, grid=(3, 5, 3), maps=2, extra=1),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def ours(**changes) -> ctssl.Swin:
    encoder = randomise(ctssl.Swin(**(LIKE_MONAI | changes)))
    with torch.no_grad():
        for block in encoder.blocks:
            block.attn.bias_table.normal_(std=0.5)
    return encoder


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 96])
@pytest.mark.parametrize(
    "changes",
    [{}, dict(convs=True, patch_norm=False, qkv_bias=False), dict(sliced_bias=False, small_grids="pad")],
)
def test_a_swin_in_monais_swinunetr_gives_the_same_maps(changes, size):
    encoder = ours(**changes)
    if changes.get("small_grids") and size == 64:
        size = 80  # more than a window of tokens in the last stage, which 64 has not
    state = ctssl.to_monai(encoder).state_dict()
    net = SwinUNETR(
        1,
        2,
        feature_size=12,
        depths=LIKE_MONAI["depths"],
        num_heads=LIKE_MONAI["heads"],
        window_size=4,
        patch_norm=encoder.config["patch_norm"],
        qkv_bias=encoder.config["qkv_bias"],
        use_v2=encoder.config.get("convs", False),
    ).eval()
    net.swinViT.load_state_dict(state)
    x = torch.rand(1, 1, size, size, size)
    with torch.no_grad():
        for one, two in zip(encoder(x), net.swinViT(x), strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_the_deepest_map_of_the_papers_swin_can_be_exported_alone():
    encoder, x = ours(maps="before", sliced_bias=False), torch.rand(1, 1, 96, 64, 64)
    with pytest.raises(ValueError, match="not representable: this encoder gives its maps before merging"):
        ctssl.to_monai(encoder)
    with torch.no_grad():
        last = encoder(x)[-1].permute(0, 2, 3, 4, 1)
        expected = F.layer_norm(last, last.shape[-1:]).permute(0, 4, 1, 2, 3)
        torch.testing.assert_close(
            ctssl.to_monai(encoder, deepest_only=True)(x)[-1], expected, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    "encoder, words",
    [
        (lambda: ours(merge_order="monai-1.4"), "cannot merge as MONAI before 1.5 did"),
        (lambda: ours(merge_last=False), "merges after each"),
        (lambda: ours(depths=(1, 1), heads=(1, 2)), "four stages"),
        (SMALL["vit"], "this is a ViT"),
    ],
)
def test_what_monai_cannot_compute_is_not_exported(encoder, words):
    with pytest.raises(ValueError, match=f"not representable: .*{words}"):
        ctssl.to_monai(encoder())


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in ctssl.list_models() if ctssl.info(n).kind == "encoder"])
def test_no_encoder_that_comes_with_ctssl_fits_into_monai_and_each_says_what_does(name):
    with pytest.raises(ValueError, match="not representable: .*to_onnx"):
        ctssl.to_monai(ctssl.load(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_program_and_an_onnx_file_give_the_same_maps(name, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is the extra ctssl[export]")
    encoder, x = randomise(SMALL[name]()), torch.rand(1, 1, *SIZE)
    with torch.no_grad():
        expected = encoder(x)
        found = ctssl.to_program(encoder, size=SIZE).module()(x)
    path = ctssl.to_onnx(encoder, tmp_path / "encoder.onnx", size=SIZE)
    session = onnxruntime.InferenceSession(str(path))
    answers = session.run(None, {"image": x.numpy()})
    assert [o.name for o in session.get_outputs()] == [f"map{i}" for i in range(len(expected))]
    for one, two, three in zip(expected, found, answers, strict=True):
        torch.testing.assert_close(two, one, atol=1e-4, rtol=0)
        torch.testing.assert_close(torch.from_numpy(three), one, atol=1e-4, rtol=0)
    with pytest.raises(FileExistsError, match="overwrite"):
        ctssl.to_onnx(encoder, path, size=SIZE)
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.onnx"]


def test_onnx_without_its_packages_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"ctssl\[export\]"):
        ctssl.to_onnx(SMALL["vit"](), tmp_path / "encoder.onnx", size=SIZE)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_segmenter_as_a_program_and_as_an_onnx_file(tiny_segmenter, tmp_path, capsys):
    onnxruntime = pytest.importorskip("onnxruntime", reason="ONNX is the extra ctssl[export]")
    net, x = ctssl.load_segmenter(tiny_segmenter), torch.rand(1, 1, 32, 32, 32)
    for flag, name in (("--onnx", "net.onnx"), ("--program", "net.pt2")):
        assert main(["export", str(tiny_segmenter), flag, str(tmp_path / name)]) == 0
        assert main(["export", str(tiny_segmenter), flag, str(tmp_path / name)]) == 2
    with torch.inference_mode():
        logits = net(x)
        torch.testing.assert_close(torch.export.load(tmp_path / "net.pt2").module()(x), logits)
    session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
    (found,) = session.run(["logits"], {"image": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), logits, rtol=1e-3, atol=1e-4)
