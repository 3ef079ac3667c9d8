"""The plain form of Swin-MLP: a grouped convolution over the tokens of each window, permuted copies around it."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.bench.plain.swin import cut, four_slices, with_forwards
from vsuite.core.models.swin import PatchMerging
from vsuite.core.models.swin_mlp import Block, SwinMLP


def _block(self: Block, x: Tensor, shift: bool) -> Tensor:
    x = x + self.drop_path(_mix(self, self.norm1(x), shift))
    return x + self.drop_path(self.mlp(self.norm2(x)))


def _mix(self: Block, x: Tensor, shift: bool) -> Tensor:
    (h, w), (batch, height, width, channels), heads = self.window, x.shape, self.num_heads
    x = F.pad(x, (0, 0, 0, -width % w, 0, -height % h))
    down, right = (h // 2, w // 2) if shift else (0, 0)
    if shift:
        x = F.pad(x, (0, 0, w - right, right, h - down, down))
    padded_height, padded_width = x.shape[1:3]
    windows = cut(x, h, w).view(-1, h * w, heads, channels // heads).transpose(1, 2)
    mixed = self.spatial_mlp(windows.reshape(-1, heads * h * w, channels // heads))
    mixed = mixed.view(-1, heads, h * w, channels // heads).transpose(1, 2).reshape(-1, h, w, channels)
    x = mixed.view(batch, padded_height // h, padded_width // w, h, w, channels).permute(0, 1, 3, 2, 4, 5).contiguous()
    x = x.view(batch, padded_height, padded_width, channels)
    top, left = (h - down, w - right) if shift else (0, 0)
    return x[:, top : top + height, left : left + width].contiguous()


def _merge(self: PatchMerging, x: Tensor) -> Tensor:
    return self.reduction(self.norm(four_slices(x)))


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    return with_forwards(SwinMLP(**options), {Block: _block, PatchMerging: _merge})
