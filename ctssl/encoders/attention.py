"""Scaled dot-product attention with an additive bias that may need a gradient."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

MOST_HEADS = 65_535
"""CUDA counts heads (here times windows) along an axis of its grid that ends there (pytorch#142228)."""


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute attention of `(W, H, N, d)` queries over `(W, H, M, d)` keys and values, with a bias `(H, N,
    M)`.

    The bias is expanded to four dimensions: with three, the fused kernel is not used. When exporting, it is
    computed from plain operations, because other runtimes lay out the fused kernel's result differently.

    Returns:
        `(W, H, N, d)`.
    """
    if torch.compiler.is_exporting():
        logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
        return (logits if bias is None else logits + bias).softmax(-1) @ v
    if bias is None:
        return F.scaled_dot_product_attention(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None])


def attend_whole(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, *, multiple: int | None = None) -> Tensor:
    """Compute attention of `(B, H, N, d)` with a bias `(1, H, N, N)`, in pieces that the fused kernels of a GPU take.

    Args:
        multiple: `d` is filled up to a multiple of this; None: of 8 in half precision on a GPU, where others are left to
            a kernel that writes down every weight.

    Returns:
        `(B, H, N, d)`.
    """
    depth = q.shape[-1]
    if multiple is None:
        multiple = 8 if q.device.type == "cuda" and q.dtype.itemsize == 2 else 1
    if depth % multiple:
        q, k, v = (F.pad(x, (0, -depth % multiple)) for x in (q, k, v))
    pieces = zip(*(x.split(MOST_HEADS, 1) for x in (q, k, v, bias)), strict=True)
    mixed = [F.scaled_dot_product_attention(*qkv, attn_mask=own, scale=depth**-0.5) for *qkv, own in pieces]
    return (torch.cat(mixed, 1) if len(mixed) > 1 else mixed[0])[..., :depth]


def learns_bias(qkv: Tensor, bias: Tensor) -> bool:
    """Return whether to use `attend_learning_bias`: on a CPU, PyTorch's fused kernel takes no bias that needs
    a gradient.
    """
    return qkv.device.type == "cpu" and torch.is_grad_enabled() and bias.requires_grad and not leaves_python()


def leaves_python() -> bool:
    """Return whether the operations are being recorded (`torch.export`, `torch.jit.trace`), to be run where our
    own gradients do not exist.
    """
    return torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def attend_learning_bias(qkv: Tensor, bias: Tensor, padding: Tensor | None = None) -> Tensor:
    """Compute attention window by window, with an efficient gradient of the bias.

    Args:
        qkv: rows `(W*N, 3*H*d)` of queries, keys and values.
        bias: `(H, N, M)`.
        padding: `(2, H, d)`, a key and a value that each window has in addition to its own (then M is N + 1).

    Returns:
        `(W*N, H*d)`.
    """
    return _BiasedAttention.apply(qkv, bias.to(qkv.dtype), padding)  # type: ignore[return-value]


class _BiasedAttention(torch.autograd.Function):
    """Softmax attention that keeps its weights, sums the bias gradient window by window, and moves each
    number once.
    """

    @staticmethod
    def forward(ctx, qkv: Tensor, bias: Tensor, padding: Tensor | None) -> Tensor:
        """See `attend_learning_bias`."""
        heads, tokens, _ = bias.shape
        width = qkv.shape[1] // 3
        parts = qkv.view(-1, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4).contiguous()
        windows, depth = parts.shape[1], parts.shape[-1]
        q, k, v = parts.view(3, windows * heads, tokens, depth)
        if padding is not None:
            k, v = (
                torch.cat([x, pad[None, :, None].expand(windows, -1, 1, -1).reshape(-1, 1, depth)], 1)
                for x, pad in zip((k, v), padding, strict=True)
            )
        weights = product(q, k.transpose(1, 2), depth**-0.5)
        weights.view(windows, heads, tokens, -1).add_(bias)
        weights = weights.softmax(-1)  # (W*H, N, M)
        ctx.save_for_backward(q, k, v, weights)
        ctx.heads, ctx.padded = heads, padding is not None
        mixed = torch.bmm(weights, v).view(windows, heads, tokens, depth)
        return mixed.transpose(1, 2).reshape(-1, width)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor):
        """Return the gradients of rows, bias and padding, given that of the result `(W*N, H*d)`."""
        q, k, v, weights = ctx.saved_tensors
        _, tokens, depth = q.shape
        scale, heads = depth**-0.5, ctx.heads
        grad = grads[0].view(-1, tokens, heads, depth).transpose(1, 2).reshape(q.shape)
        logits = torch.bmm(
            grad, v.transpose(1, 2)
        )  # gradient of the weights, then of the logits, (W*H, N, M)
        logits = torch.ops.aten._softmax_backward_data(logits, weights, -1, weights.dtype)
        gradients = q.new_empty((3, *q.shape))
        padding = None
        if ctx.padded:
            every = product(logits.transpose(1, 2), q, scale), torch.bmm(weights.transpose(1, 2), grad)
            padding = torch.stack([x[:, -1].view(-1, heads, depth).sum(0) for x in every])
            gradients[0], gradients[1], gradients[2] = (
                product(logits, k, scale),
                every[0][:, :-1],
                every[1][:, :-1],
            )
        else:
            product(logits, k, scale, out=gradients[0])
            product(logits.transpose(1, 2), q, scale, out=gradients[1])
            torch.bmm(weights.transpose(1, 2), grad, out=gradients[2])
        rows = (
            gradients.view(3, -1, heads, tokens, depth).permute(1, 3, 0, 2, 4).reshape(-1, 3 * heads * depth)
        )
        return rows, logits.view(-1, heads, tokens, logits.shape[-1]).sum(0), padding


def product(a: Tensor, b: Tensor, scale: float, *, out: Tensor | None = None) -> Tensor:
    """Return `scale * a @ b` of two stacks of matrices, without copying either."""
    return torch.baddbmm(a.new_empty((1,)), a, b, beta=0, alpha=scale, out=out)
