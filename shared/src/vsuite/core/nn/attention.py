"""Scaled dot-product attention, the one place that chooses the kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attend(query: Tensor, key: Tensor, value: Tensor, num_heads: int, *, scale: float | None = None, bias: Tensor | None = None) -> Tensor:
    """Multi-head attention of projected tokens, without the projections.

    Args:
        query: B, N, C.
        key, value: B, M, C.
        num_heads: divides C.
        scale: factor on the scores; None is 1/sqrt(C / num_heads).
        bias: added to the scores; broadcasts to B, num_heads, N, M.

    Returns:
        B, N, C.
    """
    q, k, v = (x.unflatten(-1, (num_heads, -1)).transpose(1, 2) for x in (query, key, value))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)  # B, heads, N, C / heads
    out = out.transpose(1, 2)
    if torch.compiler.is_exporting():  # ONNX's form of the attention has other strides than the fused one: a view may not do
        out = out.clone(memory_format=torch.contiguous_format)
    return out.flatten(2)
