"""Swin against MONAI's, and its attention against its definition."""

import pytest
import torch
from monai.networks.nets.swin_unetr import SwinTransformer

from ctssl import Swin, segmenter
from ctssl.encoders import ENCODERS, attention
from ctssl.encoders import swin as the_module
from ctssl.encoders.attention import attend, attend_learning_bias
from tests.support.monai_keys import MONAI_SWIN, our_swin_state
from tests.support.tiny import SMALL


def test_the_papers_swin_has_exactly_its_parameters():
    swin = Swin()
    assert sum(p.numel() for p in swin.parameters()) == 10_573_408
    assert sum(p.numel() for p in segmenter(swin, head="smit").parameters()) == 64_698_114


@pytest.mark.parametrize(
    "size",
    [
        pytest.param((64, 64, 64), marks=pytest.mark.slow),
        (50, 71, 33),
        pytest.param((30, 30, 97), marks=pytest.mark.slow),
    ],
)
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


def test_the_gradient_of_merging_is_that_of_its_definition():
    from ctssl.encoders.swin_blocks import MERGE_ORDERS, Merge, neighbours

    for order in MERGE_ORDERS:
        merge = Merge(3, order=order).double()
        x = torch.randn(2, 4, 6, 5, 3, dtype=torch.float64, requires_grad=True)
        weight = torch.randn(2, 2, 3, 3, 6, dtype=torch.float64)
        (found,) = torch.autograd.grad((merge(x) * weight).sum(), x)
        padded = torch.nn.functional.pad(x, (0, 0, 0, 1))
        plain = merge.reduction(merge.norm(neighbours(padded, merge.places)))
        (expected,) = torch.autograd.grad((plain * weight).sum(), x)
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("small_grids", ["shrink", "pad"])
@pytest.mark.parametrize("size", [(32, 32, 32), (26, 14, 40), (8, 20, 6)])
def test_whole_windows_as_on_a_gpu_give_the_maps_and_gradients_of_groups(size, small_grids, monkeypatch):
    torch.manual_seed(0)
    net = Swin(
        12,
        depths=(2, 2),
        heads=(2, 4),
        window=4,
        patch=2,
        merge_last=True,
        small_grids=small_grids,
        drop_path=0.3,
    ).train()
    for block in net.blocks:
        torch.nn.init.normal_(block.attn.bias_table, std=0.5)
        block.drop_path.drawn = torch.tensor([0.1, 0.9])
    x, found = torch.rand(2, 1, *size), []
    for grouped in (True, False):
        monkeypatch.setattr(the_module, "prefers_groups", lambda tokens, grouped=grouped: grouped)
        net.zero_grad()
        maps = net(x)
        sum(m.square().mean() for m in maps).backward()
        grads = {name: p.grad.clone() for name, p in net.named_parameters()}
        found.append((maps, grads, net.forward_intermediates(x, indices=[0, 2, 3])))
    (maps, grads, inner), (others, other_grads, other_inner) = found
    for one, two in zip([*maps, *inner], [*others, *other_inner], strict=True):
        torch.testing.assert_close(two, one, atol=2e-5, rtol=1e-4)
    for name, one in grads.items():
        torch.testing.assert_close(other_grads[name], one, atol=2e-5, rtol=1e-3, msg=name)
    monkeypatch.setattr(the_module, "prefers_groups", lambda tokens: False)
    again = Swin(**net.config, checkpointing=True).train()
    again.load_state_dict(net.state_dict())
    torch.testing.assert_close(again(x)[-1], net.eval()(x)[-1], atol=2e-5, rtol=1e-4)
    assert len(net.attention(x, block=1).weights)


def test_attention_in_pieces_for_the_kernels_of_a_gpu_is_the_same(monkeypatch):
    q, k, v = torch.randn(3, 2, 6, 8, 12)
    bias = torch.randn(1, 6, 8, 8)
    whole = attention.attend_whole(q, k, v, bias)
    torch.testing.assert_close(
        whole, torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    )
    monkeypatch.setattr(attention, "MOST_HEADS", 4)
    torch.testing.assert_close(attention.attend_whole(q, k, v, bias, multiple=8), whole)
