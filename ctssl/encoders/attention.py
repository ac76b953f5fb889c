"""Scaled dot-product attention with an additive bias that may need a gradient."""

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """`(W, H, N, d)` queries, `(W, H, M, d)` keys and values, `(H, N, M)` bias -> `(W, H, N, d)`."""
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype))
