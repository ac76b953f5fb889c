"""The encoder contract, for every encoder of ENCODERS, and each encoder against an independent one."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer
from monai.networks.nets.vit import ViT as MonaiViT

from ctssl import Swin, ViT, segmenter
from ctssl.encoders import ENCODERS
from ctssl.encoders.attention import attend, attend_learning_bias
from tests.conftest import SMALL
from tests.monai_keys import MONAI_SWIN, our_swin_state, our_vit_state


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


def test_the_papers_swin_has_exactly_its_parameters():
    swin = Swin()
    assert sum(p.numel() for p in swin.parameters()) == 10_573_408
    assert sum(p.numel() for p in segmenter(swin, head="smit").parameters()) == 64_698_114


@pytest.mark.parametrize("size", [(64, 64, 64), (50, 71, 33), (30, 30, 97)])
def test_swin_equals_monai_on_the_same_weights(size):
    torch.manual_seed(0)
    theirs = SwinTransformer(1, 48, (7, 7, 7), (2, 2, 2), (2, 2, 2, 2), (3, 6, 12, 24), spatial_dims=3).eval()
    for name, p in theirs.named_parameters():
        if "relative_position_bias_table" in name:
            torch.nn.init.normal_(p)
    ours = Swin(**MONAI_SWIN).eval()
    ours.load_state_dict(our_swin_state(theirs.state_dict()))
    x = torch.rand(1, 1, *size)
    with torch.no_grad():
        for one, two in zip(ours(x), theirs(x), strict=True):
            torch.testing.assert_close(one, two, atol=1e-4, rtol=0)


def test_swin_gradients_equal_monais():
    torch.manual_seed(0)
    theirs = SwinTransformer(1, 12, (4, 4, 4), (2, 2, 2), (2, 2, 1, 1), (1, 2, 2, 4), spatial_dims=3)
    ours = Swin(**(MONAI_SWIN | dict(width=12, depths=(2, 2, 1, 1), heads=(1, 2, 2, 4), window=4)))
    ours.load_state_dict(our_swin_state(theirs.state_dict()))
    x = torch.rand(1, 1, 30, 24, 35)
    for model in (ours, theirs):
        sum((m**3).mean() for m in model(x)).backward()
    grads = our_swin_state({name: p.grad for name, p in theirs.named_parameters()})
    for name, p in ours.named_parameters():
        torch.testing.assert_close(p.grad, grads[name], atol=1e-5, rtol=1e-3, msg=name)


def test_vit_equals_monai_on_the_same_weights():
    torch.manual_seed(0)
    theirs = MonaiViT(1, (48, 32, 64), (16, 16, 16), 96, 384, 4, 6, proj_type="conv", qkv_bias=True).eval()
    torch.nn.init.normal_(theirs.patch_embedding.position_embeddings)
    ours = ViT(96, depth=4, heads=6, patch=16, grid=(3, 2, 4), qkv_bias=True).eval()
    ours.load_state_dict(our_vit_state(theirs.state_dict(), grid=(3, 2, 4)))
    x = torch.rand(2, 1, 48, 32, 64)
    with torch.no_grad():
        last, hidden = theirs(x)
        for one, two in zip(ours.forward_intermediates(x), hidden, strict=True):
            torch.testing.assert_close(one.flatten(2).transpose(1, 2), two, atol=1e-4, rtol=0)
        torch.testing.assert_close(ours(x)[-1].flatten(2).transpose(1, 2), last, atol=1e-4, rtol=0)


def test_vit_tokens_in_any_order_give_what_the_grid_gives():
    vit = ENCODERS["vit"](**SMALL["vit"]).eval()
    x = torch.rand(1, 1, 32, 32, 32)
    tokens, places = vit.patch_embed(x).flatten(1, 3), torch.cartesian_prod(*[torch.arange(4)] * 3)
    order = torch.randperm(64)
    found = vit.encode_tokens(tokens[:, order], places[order][None])
    torch.testing.assert_close(found, vit(x)[-1].flatten(2).transpose(1, 2)[:, order])


def test_vit_attention_rows_are_distributions_and_explain_the_output():
    vit = ENCODERS["vit"](**SMALL["vit"]).eval()
    weights = vit.attention(torch.rand(1, 1, 24, 32, 17), block=-1)
    assert weights.shape == (1, 2, 36, 36)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 2, 36))


@pytest.mark.parametrize("size", [(24, 24, 24), (20, 33, 17)])
@pytest.mark.parametrize("block", [0, 1, 2, 3])
def test_swin_attention_gives_the_blocks_output_when_applied_to_its_values(size, block):
    """The oracle: put the values of the tokens into windows by hand, mix them, and compare with what the block did."""
    swin = ENCODERS["swin"](**SMALL["swin"]).eval()
    for module in swin.blocks:
        torch.nn.init.normal_(module.attn.bias_table)
        torch.nn.init.normal_(module.attn.qkv.bias)
    caught = {}
    attn = swin.blocks[block].attn
    handles = [
        swin.blocks[block].norm1.register_forward_hook(lambda m, i, o: caught.setdefault("in", []).append(o)),
        attn.register_forward_hook(lambda m, i, o: caught.setdefault("out", []).append(o)),
    ]
    plans = []
    handles.append(swin.blocks[block].register_forward_pre_hook(lambda m, inputs: plans.append(inputs[1])))
    x = torch.rand(2, 1, *size)
    swin(x)
    for handle in handles:
        handle.remove()
    found = swin.attention(x, block=block)
    plan = plans[0]
    grid = [-(-n // (2 if block < 2 else 4)) for n in size]
    width, heads = attn.qkv.in_features, attn.heads
    rows_in, rows_out = torch.cat(caught["in"])[plan.inverse], torch.cat(caught["out"])[plan.inverse]
    values = attn.qkv(rows_in).view(2, *grid, 3, heads, width // heads)[..., 2, :, :]
    pad_value = attn.qkv.bias.view(3, heads, -1)[2]
    seen = torch.zeros(2, *grid, dtype=torch.bool)
    rebuilt = torch.zeros(2, *grid, width)
    offsets = torch.cartesian_prod(*[torch.arange(w) for w in found.window])
    assert (found.weights.sum(-1) < 1 + 1e-4).all()
    for number, origin in enumerate(found.origins):
        places = origin + offsets
        inside = ((places >= 0) & (places < torch.tensor(grid))).all(1)
        v = pad_value.expand(2, len(places), heads, -1).clone()
        i, j, k = places[inside].unbind(1)
        v[:, inside] = values[:, i, j, k]
        mixed = torch.einsum("bhnm,bmhd->bnhd", found.weights[:, :, number], v)[:, inside]
        rebuilt[:, i, j, k] = attn.proj(mixed.flatten(2))
        assert not seen[:, i, j, k].any(), "windows overlap"
        seen[:, i, j, k] = True
    assert seen.all(), "some tokens are in no window"
    torch.testing.assert_close(rebuilt.view(-1, width), rows_out, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("padded", [False, True])
def test_attention_with_a_learned_bias_is_attention_and_has_the_right_gradients(padded):
    torch.manual_seed(0)
    windows, heads, tokens, depth = 2, 3, 5, 4
    rows = torch.rand(windows * tokens, 3 * heads * depth, dtype=torch.double, requires_grad=True)
    bias = torch.rand(heads, tokens, tokens + padded, dtype=torch.double, requires_grad=True)
    padding = torch.rand(2, heads, depth, dtype=torch.double, requires_grad=True) if padded else None
    found = attend_learning_bias(rows, bias, padding)
    q, k, v = rows.view(windows, tokens, 3, heads, depth).permute(2, 0, 3, 1, 4)
    if padding is not None:
        k, v = (
            torch.cat([x, pad[None, :, None].expand(windows, -1, 1, -1)], 2)
            for x, pad in zip((k, v), padding, strict=True)
        )
    torch.testing.assert_close(found, attend(q, k, v, bias).transpose(1, 2).flatten(2).flatten(0, 1))
    assert torch.autograd.gradcheck(attend_learning_bias, (rows, bias, padding))


def test_an_encoder_trains_after_it_has_been_used_in_inference_mode(encoder):
    x = torch.rand(1, 1, 40, 24, 32)  # a size that no other test uses: the window layouts are kept
    with torch.inference_mode():
        encoder(x)
    encoder(x)[-1].square().mean().backward()
    assert encoder.patch_embed.proj.weight.grad is not None


def test_the_gradient_of_merging_is_that_of_its_definition():
    from ctssl.encoders.swin import MERGE_ORDERS, Merge, neighbours

    for order in MERGE_ORDERS:
        merge = Merge(3, order=order).double()
        x = torch.randn(2, 4, 6, 5, 3, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(2, 2, 3, 3, 6, dtype=torch.float64)
        (found,) = torch.autograd.grad((merge(x) * weight).sum(), x)
        padded = torch.nn.functional.pad(x, (0, 0, 0, 1))
        plain = merge.reduction(merge.norm(neighbours(padded, merge.places)))
        (expected,) = torch.autograd.grad((plain * weight).sum(), x)
        torch.testing.assert_close(found, expected)
