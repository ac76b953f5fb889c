"""Half precision."""

import pytest
import torch

from ctssl import precision


@pytest.mark.parametrize("size", [(2, 2, 2), (2, 5, 3), (3, 3, 3)])
def test_half_precision_gives_the_gradients_of_full_precision_on_a_few_planes(size):
    """In plain bf16 they hold memory that nobody wrote, on some processors."""
    torch.manual_seed(0)
    conv, image, away = (
        torch.nn.Conv3d(32, 32, 3, padding=1),
        torch.randn(4, 32, *size),
        torch.randn(4, 32, *size),
    )
    grads = []
    for enabled in (False, True):
        conv.zero_grad()
        litter = [torch.full((conv.weight.numel(),), torch.nan) for _ in range(8)]
        del litter
        with precision.half("cpu", enabled=enabled):
            found = conv(image)
        found.float().backward(away)
        grads.append(conv.weight.grad.clone())
    assert torch.isfinite(grads[1]).all()
    assert (grads[1] - grads[0]).abs().max() < 0.03 * grads[0].abs().max()
    with precision.half("cpu", enabled=True):
        assert conv(torch.randn(1, 32, 8, 8, 8)).dtype == torch.bfloat16  # where it pays, it is used
