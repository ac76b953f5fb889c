"""The encoder that a training starts from."""

import torch

from ctssl.finetuning.start import fresh


def test_from_scratch_forgets_the_weights(tiny):
    other = fresh(tiny, seed=5)
    assert other.config == tiny.config and not torch.equal(
        other.patch_embed.proj.weight, tiny.patch_embed.proj.weight
    )
