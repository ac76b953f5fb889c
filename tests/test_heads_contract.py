"""The head contract, for every head with every encoder; each head against an independent one."""

import pytest
import torch
from monai.networks.nets import dynunet as monai_dynunet

import ctssl
from ctssl import Swin
from ctssl.encoders.pixels import Pixels
from ctssl.heads import HEADS, WHOLE
from ctssl.heads.dynunet import DynUnet
from ctssl.heads.segmenter import Segmenter
from tests.support.monai_keys import MONAI_SWIN, our_decoder_state, our_swin_state

PARTNERS = dict.fromkeys(WHOLE, Pixels)
"""Heads that are whole networks, and what they stand on."""
LARGE = dict.fromkeys(PARTNERS, pytest.mark.slow)


@pytest.fixture
def fitting(encoder):
    return lambda head: PARTNERS[head]().eval() if head in PARTNERS else encoder


@pytest.mark.parametrize("head", [pytest.param(name, marks=LARGE.get(name, ())) for name in sorted(HEADS)])
@pytest.mark.parametrize("size", [pytest.param((64, 32, 32), marks=pytest.mark.slow), (33, 17, 40)])
def test_logits_have_the_size_of_the_image_and_every_parameter_learns(fitting, head, size):
    model = Segmenter(fitting(head), head=head, classes=3).train()
    image = torch.rand(2, 1, *size)
    assert model(image).shape == (2, 3, *size)
    found = model.supervised(image)
    assert sum(weight for weight, _ in found) == pytest.approx(1.0)
    sum(weight * logits.square().mean() for weight, logits in found).backward()
    without = [
        name
        for name, p in model.head.named_parameters()
        if p.grad is None or not torch.isfinite(p.grad).all()
    ]
    assert not without
    assert all(p.grad is not None for p in model.encoder.patch_embed.parameters())


@pytest.mark.parametrize("name", ["swin-wild-mim", "vit-wild-mim"])
def test_the_default_head_is_small(name):
    head = ctssl.segmenter(name).head
    assert sum(p.numel() for p in head.parameters()) <= 2e6


@pytest.mark.slow
@pytest.mark.parametrize("head", sorted(HEADS))
def test_a_head_sees_the_image_where_it_is(fitting, head):
    """A bright corner moves the logits near that corner more than those at the far end."""
    torch.manual_seed(0)
    model = Segmenter(fitting(head), head=head).eval()
    dark = torch.zeros(1, 1, 64, 64, 64)
    bright = dark.clone()
    bright[..., :8, :8, :8] = 1.0
    with torch.no_grad():
        change = (model(bright) - model(dark)).abs().mean(1)[0]
    assert change[:12, :12, :12].mean() > 1.5 * change[-12:, -12:, -12:].mean()


@pytest.mark.slow
def test_the_decoder_of_swin_unetr_is_monais_on_the_same_weights():
    from monai.networks.nets.swin_unetr import SwinUNETR

    torch.manual_seed(0)
    theirs = SwinUNETR(in_channels=1, out_channels=3, feature_size=12).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias_table"):
            torch.nn.init.normal_(parameter, std=0.5)
    swin = Swin(**{**MONAI_SWIN, "width": 12})
    swin.load_state_dict(our_swin_state(theirs.swinViT.state_dict()))
    for head in ("swin-unetr", "smit"):
        ours = Segmenter(swin, head=head, classes=3).eval()
        ours.head.load_state_dict(our_decoder_state(theirs.state_dict()))
        with torch.no_grad():
            image = torch.rand(1, 1, 64, 96, 64)
            torch.testing.assert_close(ours(image), theirs(image), atol=1e-4, rtol=1e-4)


def test_a_whole_network_refuses_an_encoder_that_it_would_ignore(encoder):
    with pytest.raises(ValueError, match="--model dynunet"):
        Segmenter(encoder, head="dynunet")


@pytest.mark.parametrize(
    ("name", "crop", "halvings", "base"),
    [
        ("dynunet", 64, 4, 32),
        ("dynunet", 96, 4, 32),
        ("dynunet", 128, 5, 32),
        ("dynunet", 32, 3, 32),
        ("dynunet-16", 64, 4, 16),
        ("dynunet-8", 32, 3, 8),
    ],
)
def test_the_baseline_has_nnunets_shape(name, crop, halvings, base):
    head = HEADS[name]((1,), (1,), 2, crop=crop)
    assert len(head.up) == halvings and head.down[0].conv1.conv.out_channels == base
    assert head.bottleneck.conv1.conv.out_channels == min(base * 2**halvings, 320)


@pytest.mark.slow
def test_the_baseline_is_monais(monkeypatch):
    """All levels of deep supervision, against MONAI's own forward on the same blocks."""
    made = []

    class Kept(monai_dynunet.DynUNet):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            made.append(self)

    monkeypatch.setattr(monai_dynunet, "DynUNet", Kept)
    head = DynUnet((1,), (1,), 3, crop=32).train()
    image = torch.rand(1, 1, 32, 32, 32)
    theirs = made[0].train()(image)
    ours = head.deep(image, [image])
    assert [weight for weight, _ in ours] == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    torch.testing.assert_close(torch.stack([logits for _, logits in ours], 1), theirs)
    torch.testing.assert_close(head.eval()(image, [image]), made[0].eval()(image))


def test_a_decoder_refuses_crops_that_are_too_small_for_its_norm():
    swin = Swin(width=6, depths=(1, 1, 1, 1), heads=(1, 1, 2, 2), window=4, patch=2)
    with pytest.raises(ValueError, match="more than 32"):
        Segmenter(swin, head="smit")(torch.rand(1, 1, 32, 32, 32))
