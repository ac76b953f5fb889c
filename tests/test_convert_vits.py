"""ViTs of other people: what an imported encoder computes is what its source computes."""

import pytest
import torch
from monai.networks.nets.masked_autoencoder_vit import MaskedAutoEncoderViT
from monai.networks.nets.unetr import UNETR
from monai.networks.nets.vit import ViT as MonaiViT
from monai.networks.nets.vitautoenc import ViTAutoEnc

import ctssl
from ctssl.convert.importing import import_checkpoint
from tests.support.foreign import randomise, timm_vit
from tests.support.importing import SIZES, imported, prefixed, save_plainly


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def monai_vit(kind: str, size: int):
    """A MONAI ViT of one kind, its last features `(B, N, C)` as a function, what to save, and its options."""
    if kind == "masked":
        net = randomise(MaskedAutoEncoderViT(1, size, 16, 48, 96, 3, 4, decoder_num_layers=1, qkv_bias=True))
        return (
            net,
            lambda x: net.blocks(torch.cat([net.cls_token, net.patch_embedding(x)], 1))[:, 1:],
            net.state_dict(),
        )
    if kind == "autoencoder":
        net = randomise(ViTAutoEnc(1, size, 16, hidden_size=48, mlp_dim=96, num_layers=3, num_heads=4))
        return net, lambda x: net.norm(net(x)[1][-1]), net.state_dict()
    if kind == "unetr":
        whole = randomise(
            UNETR(1, 2, size, feature_size=4, hidden_size=48, mlp_dim=96, num_heads=4, qkv_bias=True)
        )
        return whole, lambda x: whole.vit(x)[0], {"model": whole.state_dict()}
    net = MonaiViT(
        1,
        size,
        16,
        48,
        96,
        3,
        4,
        proj_type="perceptron" if kind == "perceptron" else "conv",
        classification=kind == "class",
        qkv_bias=kind == "class",
    )
    randomise(net)
    skip = int(kind == "class")
    return net, lambda x: net.norm(net(x)[1][-1])[:, skip:], prefixed(net.state_dict(), "module.")


@pytest.mark.parametrize("kind", ["conv", "perceptron", "class", "autoencoder", "masked", "unetr"])
def test_monais_vits(tmp_path, kind):
    for size in SIZES if kind == "conv" else [64]:
        _, features, content = monai_vit(kind, size)
        encoder, done = imported(tmp_path, content, family="monai-vit", heads=4)
        assert encoder.config.get("extra", 0) == int(kind in ("class", "masked"))
        x = torch.rand(2, 1, size, size, size)
        with torch.no_grad():
            if kind == "masked":
                x = x[:1]
            torch.testing.assert_close(
                encoder(x)[-1].flatten(2).transpose(1, 2), features(x), atol=1e-4, rtol=0
            )
        assert done.counts["renamed"] >= 19


@pytest.mark.parametrize(
    "args",
    [
        {},
        dict(reg_tokens=2, init_values=0.5),
        dict(no_embed_class=True, qkv_bias=False),
        dict(class_token=False, global_pool="avg", fc_norm=False),
    ],
)
def test_timms_vits(tmp_path, args):
    for size in SIZES if not args else [64]:
        theirs = randomise(timm_vit(size, **args))
        encoder, done = imported(
            tmp_path, {"model": theirs.state_dict()}, heads=4, spacing_mm=1.5, window_hu=(-1000, 1000)
        )
        assert done.family == "timm-vit"
        x = torch.rand(1, 1, size, size, size)
        with torch.no_grad():
            last = theirs.forward_features(x)[:, theirs.num_prefix_tokens :]
            torch.testing.assert_close(encoder(x)[-1].flatten(2).transpose(1, 2), last, atol=1e-4, rtol=0)
            hidden = theirs.patch_embed(x)
            hidden = theirs.blocks[0](theirs._pos_embed(hidden))[:, theirs.num_prefix_tokens :]
            first = encoder.forward_intermediates(x, indices=[0])[0].flatten(2).transpose(1, 2)
            torch.testing.assert_close(first, hidden, atol=1e-4, rtol=0)
        assert {e["action"] for e in done.keys if "ls1" in e["key"]} <= {"joined"}


@torch.no_grad()
def test_an_attention_and_tokens_without_a_place(tmp_path):
    encoder = randomise(ctssl.ViT(24, depth=2, heads=2, patch=8, grid=(2, 3, 2), maps=2, extra=3))
    x = torch.rand(1, 1, 16, 24, 16)
    assert encoder.attention(x, block=-1).shape == (1, 2, 15, 15) and encoder(x)[0].shape == (1, 24, 2, 3, 2)
    places = torch.cartesian_prod(torch.arange(2), torch.arange(3), torch.arange(2))[None]
    found = encoder.encode_tokens(encoder.patch_embed(x).flatten(1, 3), places)
    torch.testing.assert_close(found, encoder(x)[-1].flatten(2).transpose(1, 2))
    before = encoder(x)[-1].clone()
    encoder.extra.add_(torch.randn(1, 3, 24))
    assert (encoder(x)[-1] - before).abs().max() > 1e-4, "the extra tokens attend"


def test_what_a_vit_does_not_tell_is_asked_for(tmp_path):
    file = save_plainly(timm_vit(64).state_dict(), tmp_path / "vit.safetensors")
    told = dict(out=tmp_path / "out", heads=4, spacing_mm=1.0, window_hu=(0, 1))
    with pytest.raises(ValueError, match="--heads N"):
        import_checkpoint(file, **(told | {"heads": None}))
    with pytest.raises(ValueError, match="--spacing MM and --window-hu LOW HIGH"):
        import_checkpoint(file, **(told | {"spacing_mm": None}))
    with pytest.raises(ValueError, match="--grid 2 2 2 makes 8"):
        import_checkpoint(file, **told, grid=(2, 2, 2))
    with pytest.raises(ValueError, match="--merging does not apply to timm-vit checkpoints"):
        import_checkpoint(file, **told, merging="1.4")
    import_checkpoint(file, **told, grid=(4, 2, 8))
    assert ctssl.load(tmp_path / "out").config["grid"] == (4, 2, 8)
