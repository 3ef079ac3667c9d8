"""The plain form of ConvFormer: every filter run by itself and the results averaged, attention scores written out.

The baseline of the benchmark and the oracle of the tests.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.video_pose.models.convformer import DMHCSA, ConvFormer, FilterBank


def _filtered(bank: FilterBank, x: Tensor) -> Tensor:
    return sum(share * conv(x) for share, conv in zip(bank.eta.softmax(0), bank.convs, strict=True))


def _attention(self: DMHCSA, x: Tensor) -> Tensor:
    batch, length, dim = x.shape
    x = x.transpose(1, 2) if self.axis == "spatial" else x
    parts = [F.dropout(_filtered(bank, x), self.dropout, self.training) for bank in (self.q, self.k, self.v)]
    parts = [part.transpose(1, 2) if self.axis == "spatial" else part for part in parts]
    query, key, value = (part.reshape(batch, length, self.num_heads, -1).permute(0, 2, 1, 3) for part in parts)
    weights = (query @ key.transpose(-2, -1) / (dim // self.num_heads) ** 0.5).softmax(dim=-1)
    x = (weights @ value).permute(0, 2, 1, 3).reshape(batch, length, dim)
    return self.proj(x.transpose(1, 2)).transpose(1, 2) if self.axis == "spatial" else self.proj(x)


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operator in place of the fast one."""
    model = ConvFormer(**options)
    for module in model.modules():
        if isinstance(module, DMHCSA):
            module.forward = _attention.__get__(module)  # type: ignore[method-assign]
    return model


@torch.no_grad()
def lift(model: ConvFormer, poses_2d: Tensor) -> Tensor:
    """What `model.lift` gives, window by window as the published evaluations do it: (T, J, 2) -> (T, J, 3)."""
    half = model.num_frames // 2
    padded = torch.cat([poses_2d[:1].repeat(half, 1, 1), poses_2d, poses_2d[-1:].repeat(half, 1, 1)])
    return torch.cat([model(padded[None, i : i + model.num_frames])[0] for i in range(len(poses_2d))])
