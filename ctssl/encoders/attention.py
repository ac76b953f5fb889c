"""Scaled dot-product attention with an additive bias that may need a gradient."""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`(W, H, N, d)` queries, `(W, H, M, d)` keys and values, `(H, N, M)` bias -> `(W, H, N, d)`.

    On a CPU, PyTorch's fused kernel takes no bias that needs a gradient; there we do the sums ourselves, a few windows
    at a time, so that the weights stay in the cache. The bias is given four dimensions: with three, the fused kernel
    is not used either.
    """
    bias = bias.to(q.dtype)
    if q.device.type == "cpu" and torch.is_grad_enabled() and bias.requires_grad:
        return _BiasedAttention.apply(q, k, v, bias)  # type: ignore[return-value]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])


class _BiasedAttention(torch.autograd.Function):
    """Softmax attention that keeps its weights, and sums the bias gradient window by window instead of scattering."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """As `attend`."""
        weights = torch.matmul(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))  # (W, H, N, M)
        weights = weights.add_(bias).softmax(-1)
        ctx.save_for_backward(q, k, v, weights)
        return torch.matmul(weights, v).transpose(1, 2).contiguous().transpose(1, 2)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """Gradients of the queries, keys, values and the bias, from that of the result `(W, H, N, d)`."""
        q, k, v, weights = ctx.saved_tensors
        grad, scale = grads[0], q.shape[-1] ** -0.5
        grad_v = torch.matmul(weights.transpose(-2, -1), grad)
        logits = torch.matmul(grad, v.transpose(-2, -1))  # gradient of the weights, then of the logits, (W, H, N, M)
        logits = torch.ops.aten._softmax_backward_data(logits, weights, -1, weights.dtype)
        grad_q = torch.matmul(logits, k).mul_(scale)
        grad_k = torch.matmul(logits.transpose(-2, -1), q).mul_(scale)
        return grad_q, grad_k, grad_v, logits.sum(0)
