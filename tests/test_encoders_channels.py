"""Images of several channels: PET and CT, two energies."""

import pytest
import torch

import ctssl
from ctssl.encoders.layers import widen
from ctssl.heads import HEADS, WHOLE


def test_equal_channels_give_the_maps_of_one(encoder):
    wide, x = widen(encoder, 3), torch.rand(2, 1, 16, 24, 16)
    with torch.inference_mode():
        for one, two in zip(encoder(x), wide(x.repeat(1, 3, 1, 1, 1)), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)
    assert encoder.patch_embed.proj.in_channels == 1 and wide.config["in_channels"] == 3
    assert widen(wide, 3) is wide
    with pytest.raises(ValueError, match="3 channels"):
        widen(wide, 2)
    with pytest.raises(ValueError, match=r"takes \(B, 3, X, Y, Z\)"):
        wide(x)


@pytest.mark.parametrize("head", sorted(set(HEADS) - set(WHOLE)))
def test_every_head_takes_several_channels_and_keeps_them(tiny, head, tmp_path):
    net = ctssl.segmenter(tiny, head=head, in_channels=2, window=32).eval()
    x = torch.rand(1, 2, 32, 32, 32)
    logits = net(x)
    assert logits.shape == (1, 2, 32, 32, 32)
    logits.sum().backward()
    assert net.encoder.patch_embed.proj.weight.grad[:, 1].abs().sum() > 0
    again = ctssl.load_segmenter(net.save_pretrained(tmp_path / "two"))
    with torch.inference_mode():
        assert torch.equal(again(x), net(x))


def test_a_published_encoder_with_two_channels(ball):
    encoder = ctssl.load("vit-wild-contrastive", in_channels=2)
    x = torch.rand(1, 2, 16, 16, 16)
    assert len(encoder(x)) == 4 and not encoder.training
    with pytest.raises(ValueError, match="2 channels"):
        encoder.embed(ball[0])
    with pytest.raises(ValueError, match="2 channels"):
        ctssl.segmenter(encoder).segment(ball[0])
