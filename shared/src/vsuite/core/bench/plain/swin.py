"""The plain form of Swin: scores written out, biases gathered and masks drawn in each block, permuted copies, four slices to merge."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.models.swin import PatchMerging, Swin, WindowAttention
from vsuite.core.models.window_backbone import ShiftedWindowAttention

Attend = Callable[[Any, Tensor, Tensor | None], Tensor]


def relative_index(h: int, w: int, device: torch.device) -> Tensor:
    coordinates = torch.stack(torch.meshgrid(torch.arange(h, device=device), torch.arange(w, device=device), indexing="ij")).flatten(1)
    offsets = (coordinates[:, :, None] - coordinates[:, None, :]).permute(1, 2, 0)
    return (offsets[..., 0] + h - 1) * (2 * w - 1) + offsets[..., 1] + w - 1


def cut(x: Tensor, h: int, w: int) -> Tensor:
    batch, height, width, channels = x.shape
    x = x.view(batch, height // h, h, width // w, w, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, h * w, channels)


def shift_mask(height: int, width: int, window: tuple[int, int], shift: tuple[int, int], like: Tensor) -> Tensor:
    """Windows, N, N: the regions of the rolled map are numbered, cut into windows and compared."""
    regions = like.new_zeros((1, height, width, 1))
    count = 0
    for rows in (slice(0, -window[0]), slice(-window[0], -shift[0]), slice(-shift[0], None)):
        for columns in (slice(0, -window[1]), slice(-window[1], -shift[1]), slice(-shift[1], None)):
            regions[:, rows, columns] = count
            count += 1
    numbers = cut(regions, *window)[..., 0]
    apart = numbers[:, None, :] - numbers[:, :, None]
    return apart.masked_fill(apart != 0, -100.0)


def in_windows(attend: Attend) -> Callable[[ShiftedWindowAttention, Tensor, bool], Tensor]:
    def forward(self: ShiftedWindowAttention, x: Tensor, shift: bool) -> Tensor:
        (h, w), (down, right), (batch, height, width, channels) = self.window, self.shift, x.shape
        x = F.pad(x, (0, 0, 0, -width % w, 0, -height % h))
        padded_height, padded_width = x.shape[1:3]
        mask = None
        if shift and min(self.shift) > 0:
            mask = shift_mask(padded_height, padded_width, self.window, self.shift, x)
            x = torch.roll(x, (-down, -right), (1, 2))
        windows = attend(self, cut(x, h, w), mask)
        x = windows.view(batch, padded_height // h, padded_width // w, h, w, channels).permute(0, 1, 3, 2, 4, 5).contiguous()
        x = x.view(batch, padded_height, padded_width, channels)
        if mask is not None:
            x = torch.roll(x, (down, right), (1, 2))
        return x[:, :height, :width].contiguous()

    return forward


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """query, key, value: B, heads, N, C / heads -> B, N, C."""
    scores = query @ key.transpose(-2, -1) + bias
    if mask is not None:
        windows, heads, length, _ = scores.shape
        scores = (scores.view(-1, len(mask), heads, length, length) + mask[:, None]).view(windows, heads, length, length)
    return (scores.softmax(-1) @ value).transpose(1, 2).reshape(len(query), query.shape[2], -1)


def _attend(self: WindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    batch, length, dim = x.shape
    query, key, value = self.qkv(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
    index = relative_index(*self.window, x.device)
    bias = self.relative_position_bias_table[index.view(-1)].view(length, length, -1).permute(2, 0, 1).contiguous()
    return self.proj(softmax_attention(query * (dim // self.num_heads) ** -0.5, key, value, bias, mask))


def four_slices(x: Tensor) -> Tensor:
    x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
    return torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)


def _merge(self: PatchMerging, x: Tensor) -> Tensor:
    return self.reduction(self.norm(four_slices(x)))


def with_forwards(model: nn.Module, forwards: Mapping[type[nn.Module], Callable[..., Tensor]]) -> nn.Module:
    """The model with the forward methods of these classes replaced."""
    for module in model.modules():
        if type(module) in forwards:
            module.forward = types.MethodType(forwards[type(module)], module)
    return model


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    return with_forwards(Swin(**options), {WindowAttention: in_windows(_attend), PatchMerging: _merge})
