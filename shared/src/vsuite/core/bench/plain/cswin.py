"""The plain form of CSWin: q, k and v each become a map and from there windows, copy by copy, with the scores written out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.models.cswin import CSWin, LePEAttention


def _windows(x: Tensor, h: int, w: int) -> Tensor:
    """B, C, H, W -> B * windows, C, h, w."""
    batch, channels, height, width = x.shape
    x = x.view(batch, channels, height // h, h, width // w, w).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(-1, channels, h, w)


def _heads(windows: Tensor, num_heads: int) -> Tensor:
    """B * windows, C, h, w -> B * windows, heads, h * w, C / heads."""
    return windows.reshape(len(windows), num_heads, -1, windows.shape[2] * windows.shape[3]).transpose(2, 3).contiguous()


def _attention(self: LePEAttention, qkv: Tensor) -> Tensor:
    batch, height, width, _, dim = qkv.shape
    stripe = self.stripe_width
    h = height if stripe is None or self.vertical else stripe
    w = stripe if stripe is not None and self.vertical else width
    down, right = -height % h, -width % w
    top, left = down // 2, right // 2
    maps = [x.permute(0, 3, 1, 2).contiguous() for x in qkv.unbind(3)]  # B, C, H, W
    maps = [F.pad(x, (left, right - left, top, down - top)) if down or right else x for x in maps]
    query, key, value = (_heads(_windows(x, h, w), self.num_heads) for x in maps)
    local = _heads(self.get_v(_windows(maps[2], h, w)), self.num_heads)
    scores = query * query.shape[-1] ** -0.5 @ key.transpose(-2, -1)
    x = (scores.softmax(-1) @ value + local).transpose(1, 2).reshape(-1, h * w, dim)
    x = x.view(batch, (height + down) // h, (width + right) // w, h, w, dim).permute(0, 1, 3, 2, 4, 5).contiguous()
    return x.view(batch, height + down, width + right, dim)[:, top : top + height, left : left + width].contiguous()


def _pyramid(self: CSWin, x: Tensor) -> Iterator[Tensor]:
    for downsample, blocks in self.stages():
        x = downsample(x).permute(0, 2, 3, 1).contiguous()
        for block in blocks:
            x = block(x)
        x = x.permute(0, 3, 1, 2).contiguous()
        yield x


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = CSWin(**options)
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    for module in model.modules():
        if isinstance(module, LePEAttention):
            module.forward = _attention.__get__(module)  # type: ignore[method-assign]
    model.pyramid = _pyramid.__get__(model)  # type: ignore[method-assign]
    return model
