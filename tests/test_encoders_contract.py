"""The encoder contract, for every encoder of ENCODERS."""

import pytest
import torch

from ctssl.encoders import ENCODERS
from tests.support.tiny import SMALL


def test_every_encoder_is_tested_here():
    assert set(SMALL) == set(ENCODERS)


@pytest.mark.parametrize("size", [(32, 32, 32), (33, 17, 40), (9, 50, 21), (2, 3, 4)])
def test_maps_have_the_promised_channels_and_sizes(encoder, size):
    maps = encoder(torch.rand(2, 1, *size))
    assert len(maps) == len(encoder.channels) == len(encoder.strides)
    for features, channels, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert features.shape == (2, channels, *(-(-n // stride) for n in size))
        assert torch.isfinite(features).all()


def test_forward_is_encode_after_patch_embed(encoder):
    x = torch.rand(1, 1, 24, 32, 17)
    for one, two in zip(encoder(x), encoder.encode(encoder.patch_embed(x)), strict=True):
        assert torch.equal(one, two)


def test_scans_of_a_batch_do_not_see_each_other(encoder):
    x = torch.rand(3, 1, 24, 17, 20)
    for whole, alone in zip(encoder(x), encoder(x[1:2]), strict=True):
        torch.testing.assert_close(whole[1:2], alone, atol=1e-5, rtol=1e-4)


def test_every_parameter_gets_a_gradient(encoder):
    encoder.train()
    sum((features**2).sum() + features.sum() for features in encoder(torch.rand(1, 1, 32, 24, 32))).backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert not without


def test_checkpointing_gives_the_same_gradients(encoder):
    x, grads = torch.rand(1, 1, 20, 24, 17), []
    for encoder.checkpointing in (False, True):
        encoder.zero_grad()
        sum((m**2).mean() for m in encoder(x)).backward()
        grads.append([p.grad.clone() for p in encoder.parameters()])
    for one, two in zip(*grads, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("train", [False, True])
def test_bfloat16_stays_close_to_float32(encoder, train):
    x = torch.rand(1, 1, 32, 24, 32)
    with torch.set_grad_enabled(train):
        exact = encoder(x)
        with torch.autocast("cpu", torch.bfloat16):
            rough = encoder(x)
    for one, two in zip(exact, rough, strict=True):
        assert (one - two.float()).abs().mean() < 0.05 * one.std()
    if train:
        with torch.autocast("cpu", torch.bfloat16):
            sum(m.float().mean() for m in encoder(x)).backward()
        assert all(torch.isfinite(p.grad).all() for p in encoder.parameters() if p.grad is not None)


def test_intermediates_are_the_outputs_of_the_blocks_asked_for(encoder):
    x = torch.rand(1, 1, 24, 17, 20)
    every = encoder.forward_intermediates(x)
    assert len(every) == len(encoder.blocks)
    last, first = encoder.forward_intermediates(x, indices=[-1, 0])
    assert torch.equal(last, every[-1]) and torch.equal(first, every[0])
    with pytest.raises(ValueError, match="choose from"):
        encoder.forward_intermediates(x, indices=[99])


def test_the_last_intermediate_normed_is_the_last_map():
    x = torch.rand(1, 1, 24, 17, 20)
    for name, norm in (("swin", "norms.1"), ("vit", "norm")):
        model = ENCODERS[name](**SMALL[name]).eval()
        tokens = model.forward_intermediates(x, indices=[-1])[0].permute(0, 2, 3, 4, 1)
        normed = model.get_submodule(norm)(tokens).permute(0, 4, 1, 2, 3)
        torch.testing.assert_close(normed, model(x)[-1])


def test_an_input_without_channel_axis_is_refused_in_words(encoder):
    with pytest.raises(ValueError, match=r"\(B, 1, X, Y, Z\)"):
        encoder(torch.rand(1, 32, 32, 32))


def test_drop_path_only_acts_in_training():
    for name in ENCODERS:
        model = ENCODERS[name](**SMALL[name], drop_path=0.9)
        x = torch.rand(2, 1, 16, 16, 16)
        model.train()
        assert not torch.equal(model(x)[-1], model(x)[-1])
        model.eval()
        assert torch.equal(model(x)[-1], model(x)[-1])


def test_an_encoder_trains_after_it_has_been_used_in_inference_mode(encoder):
    x = torch.rand(1, 1, 40, 24, 32)  # a size that no other test uses: the window layouts are kept
    with torch.inference_mode():
        encoder(x)
    encoder(x)[-1].square().mean().backward()
    assert encoder.patch_embed.proj.weight.grad is not None
