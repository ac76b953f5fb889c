"""Half precision, and results that are the same in every run."""

import pytest
import torch
from monai.networks.utils import one_hot

import ctssl
from ctssl import precision
from ctssl.encoders.layers import upsample
from ctssl.encoders.pixels import Pixels
from ctssl.finetuning import loop
from ctssl.heads import HEADS, WHOLE
from ctssl.precision import deterministic
from tests.support.tiny import tiny_swin


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


@pytest.mark.parametrize("sizes", [((5, 4, 3), (10, 8, 6)), ((2, 3, 4), (5, 3, 7)), ((8, 8, 8), (3, 5, 8))])
def test_upsampling_that_is_the_same_in_every_run_is_that_of_pytorch(sizes):
    x = torch.rand(2, 3, *sizes[0], requires_grad=True)
    twin = x.detach().clone().requires_grad_()
    plain = upsample(x, sizes[1])
    with deterministic(enabled=True):
        ours = upsample(twin, sizes[1])
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    for one in (plain, ours):
        one.square().sum().backward()
    torch.testing.assert_close(twin.grad, x.grad, atol=1e-4, rtol=1e-4)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_loss_that_is_the_same_in_every_run_is_the_usual_one():
    torch.manual_seed(0)
    logits, labels = torch.randn(2, 3, 6, 6, 6), torch.randint(3, (2, 1, 6, 6, 6))
    spread = loop.criterion(True)(logits, one_hot(labels, 3))
    torch.testing.assert_close(spread, loop.criterion()(logits, labels))


@pytest.mark.parametrize("head", sorted(HEADS))
def test_training_in_deterministic_mode_takes_the_same_steps(head):
    """On a CPU, where both modes give the same weights up to rounding; on a GPU PyTorch refuses what has no such algorithm."""
    nets = []
    for enabled in (False, True):
        torch.manual_seed(0)
        encoder = Pixels() if head in WHOLE else tiny_swin()
        net = ctssl.segmenter(encoder, head=head, window=16)
        opt = torch.optim.SGD(net.parameters(), 0.01)
        image, label = torch.rand(1, 1, 16, 16, 16), torch.randint(2, (1, 1, 16, 16, 16))
        with deterministic(enabled=enabled):
            loop.descend(net.train(), opt, image, label, half=False, world=1)
        nets.append(net)
    for one, two in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_a_process_that_used_the_gpu_before_is_told_what_to_set():
    with (
        pytest.raises(ValueError, match="start it again with CUBLAS_WORKSPACE_CONFIG=:4096:8"),
        deterministic(enabled=True),
    ):
        raise RuntimeError(
            "Deterministic behavior ... set an environment variable CUBLAS_WORKSPACE_CONFIG=:4096:8"
        )
    with pytest.raises(RuntimeError, match="another"), deterministic(enabled=True):
        raise RuntimeError("another")
