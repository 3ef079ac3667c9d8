"""Folding what is constant at inference into the layer before it."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()
def fold_batch_norm(conv: nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear, norm: nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d) -> None:
    """Multiplies the running statistics of a batch norm into the convolution (or linear layer) that feeds it.

    Afterwards `conv` alone returns what `norm(conv(x))` returned in eval mode.

    Args:
        conv: has `weight` (first axis: output channels) and `bias` (None allowed: it is created).
        norm: over the same channels, with running statistics.
    """
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    bias = torch.zeros_like(factor) if conv.bias is None else conv.bias
    conv.weight.mul_(factor.reshape(-1, *[1] * (conv.weight.ndim - 1)))
    conv.bias = nn.Parameter((bias - norm.running_mean) * factor + norm.bias, requires_grad=False)
