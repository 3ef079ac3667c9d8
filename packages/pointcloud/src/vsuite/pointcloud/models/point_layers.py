"""Layers on point features B, N, ..., C that the shape networks share."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError


def normalised(x: Tensor, norm: nn.Module) -> Tensor:
    """Batch norm over all axes but the last; in training it updates the running statistics as the module would.

    `norm` is a batch norm of any rank, or the identity that folding leaves.
    """
    if isinstance(norm, nn.Identity):
        return x
    assert isinstance(norm, nn.BatchNorm1d | nn.BatchNorm2d)
    if norm.training and norm.num_batches_tracked is not None:
        norm.num_batches_tracked.add_(1)
    rows = x.reshape(-1, x.shape[-1])
    if norm.training and len(rows) < 2:
        raise InputError("training needs batches of 2 or more samples: batch norm has no statistics of a single one")
    momentum = 0.1 if norm.momentum is None else norm.momentum
    out = F.batch_norm(rows, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.training, momentum, norm.eps)
    return out.view(x.shape)


def norm_factor(norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """What a batch norm in eval mode multiplies each channel by, and what it adds."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    factor = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return factor, norm.bias - norm.running_mean * factor


class LinearNorm(nn.Sequential):
    """Linear layer without bias, then batch norm over all axes but the last. ..., C -> ..., C'."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__(nn.Linear(in_dim, out_dim, bias=False), nn.BatchNorm1d(out_dim))

    def forward(self, x: Tensor) -> Tensor:
        if self.is_affine:
            return F.linear(x, *self.affine())
        return normalised(F.linear(x, self.linear.weight), self[1])

    @property
    def linear(self) -> nn.Linear:
        linear = self[0]
        assert isinstance(linear, nn.Linear)
        return linear

    @property
    def is_affine(self) -> bool:
        """Whether the layer is a mere matrix and bias: in eval mode, and after `fold`."""
        return not (isinstance(self[1], nn.BatchNorm1d) and self[1].training)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Weight and bias of linear layer and norm together, where `is_affine`."""
        if not isinstance(self[1], nn.BatchNorm1d):
            return self.linear.weight, self.linear.bias
        factor, shift = norm_factor(self[1])
        return self.linear.weight * factor[:, None], shift

    @torch.no_grad()
    def fold(self) -> None:
        if isinstance(self[1], nn.BatchNorm1d):
            weight, bias = self.affine()
            self.linear.weight.copy_(weight)
            self.linear.bias = nn.Parameter(bias, requires_grad=False)
            self[1] = nn.Identity()


def check_cloud(points: Tensor, min_points: int, columns: int = 3) -> None:
    """Refuses what no shape network can take: another rank or number of columns, too few points, NaN."""
    if points.ndim != 3 or points.shape[2] != columns or not points.is_floating_point():
        raise InputError(f"points must be B, N, {columns} floating-point; got {tuple(points.shape)} of {points.dtype}")
    if points.shape[1] < min_points:
        raise InputError(f"the network needs {min_points} points or more; got {points.shape[1]}")
    if points.is_meta or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return
    if not bool(points.isfinite().all()):
        raise InputError("points must be finite; there are NaN or infinite values")
