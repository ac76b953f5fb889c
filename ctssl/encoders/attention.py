"""Scaled dot-product attention with an additive bias that may need a gradient."""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """`(W, H, N, d)` queries, `(W, H, M, d)` keys and values, `(H, N, M)` bias -> `(W, H, N, d)`.

    On a CPU, PyTorch's fused kernel takes no bias that needs a gradient; there we do the sums ourselves, a few windows
    at a time, so that the weights stay in the cache. The bias is given four dimensions: with three, the fused kernel
    is not used either. A program for other runtimes gets plain sums, since each lays the fused kernel's result out in
    its own way.
    """
    if torch.compiler.is_exporting():
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return (logits if bias is None else logits + bias).softmax(-1) @ v
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v)
    bias = bias.to(q.dtype)
    if q.device.type == "cpu" and torch.is_grad_enabled() and bias.requires_grad:
        return _BiasedAttention.apply(q, k, v, bias)  # type: ignore[return-value]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])


class _BiasedAttention(torch.autograd.Function):
    """Softmax attention that keeps its weights, and sums the bias gradient window by window instead of scattering."""

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """As `attend`."""
        windows, heads, tokens, depth = q.shape
        q, k, v = (x.reshape(windows * heads, -1, depth) for x in (q, k, v))  # copies, which the gradient uses again
        weights = product(q, k.transpose(1, 2), depth**-0.5)
        weights.view(windows, heads, tokens, -1).add_(bias)
        weights = weights.softmax(-1)  # (W*H, N, M)
        ctx.save_for_backward(q, k, v, weights)
        return torch.bmm(weights, v).view(windows, heads, tokens, depth).transpose(1, 2).contiguous().transpose(1, 2)

    @staticmethod
    def backward(ctx, *grads: Tensor):
        """Gradients of the queries, keys, values and the bias, from that of the result `(W, H, N, d)`."""
        q, k, v, weights = ctx.saved_tensors
        windows, heads, tokens, depth = grads[0].shape
        grad, scale = grads[0].reshape(windows * heads, tokens, depth), depth**-0.5
        grad_v = torch.bmm(weights.transpose(1, 2), grad)
        logits = torch.bmm(grad, v.transpose(1, 2))  # gradient of the weights, then of the logits, (W*H, N, M)
        logits = torch.ops.aten._softmax_backward_data(logits, weights, -1, weights.dtype)
        found = product(logits, k, scale), product(logits.transpose(1, 2), q, scale), grad_v
        return *(x.view(windows, heads, -1, depth) for x in found), logits.view(windows, heads, tokens, -1).sum(0)


def product(a: Tensor, b: Tensor, scale: float) -> Tensor:
    """`scale * a @ b` of two stacks of matrices, without a copy of either."""
    return torch.baddbmm(a.new_empty(1), a, b, beta=0, alpha=scale)
