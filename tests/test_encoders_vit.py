"""ViT against MONAI's, and its tokens in any order."""

import torch
from monai.networks.nets.vit import ViT as MonaiViT

from ctssl import ViT
from ctssl.encoders import ENCODERS
from tests.support.monai_keys import our_vit_state
from tests.support.tiny import SMALL


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
