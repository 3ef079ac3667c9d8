"""Stochastic depth."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError


class DropPath(nn.Module):
    """Drops a residual branch for whole samples while training, and scales the kept ones so that the mean stays.

    Args:
        rate: share of the samples whose branch is dropped, in [0, 1).
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """x: B, ... -> the same shape."""
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) >= self.rate
        return x * (kept.to(x.dtype) / (1 - self.rate))

    def extra_repr(self) -> str:
        return f"rate={self.rate:g}"


def drop_path_rates(rate: float, depths: Sequence[int]) -> list[list[float]]:
    """Rates that rise linearly from 0 to `rate` over all blocks of all stages: one list a stage."""
    if not 0 <= rate < 1:
        raise InputError(f"drop_path_rate must lie in [0, 1); got {rate}")
    total = sum(depths)
    ramp = iter([rate * i / max(total - 1, 1) for i in range(total)])
    return [list(itertools.islice(ramp, depth)) for depth in depths]
