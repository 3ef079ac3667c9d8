"""Folding what is constant at inference into the layer before it."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def fold_batch_norm(conv: nn.Module, norm: nn.Module) -> None:
    """Multiplies the running statistics of a batch norm into the convolution (or linear layer) that feeds it.

    Afterwards `conv` alone returns what `norm(conv(x))` returned in eval mode.

    Args:
        conv: has `weight` (first axis: output channels) and `bias` (None allowed: it is created).
        norm: a `BatchNorm1d`, `2d` or `3d` over the same channels, with running statistics.
    """
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = norm.running_mean.new_zeros(factor.shape) if conv.bias is None else conv.bias
    conv.weight.mul_(factor.reshape(-1, *[1] * (conv.weight.ndim - 1)))
    conv.bias = nn.Parameter((bias - norm.running_mean) * factor + norm.bias, requires_grad=False)
