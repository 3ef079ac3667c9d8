"""The plain form of DRCT: scores written out, biases gathered and masks made in every block, maps for each 1 x 1 convolution.

As in the official code, every block makes its mask anew on the CPU, shifted or not. That code does so at every size but one, that of
its training, 64 x 64, whose masks it keeps: there this form takes up to a seventh longer. Shares parameter names with the
fast form, and of its operators the position grid and the drop path.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.restoration.models.drct import DRCT, RGB_MEAN
from vsuite.restoration.models.drct_group import ResidualDenseGroup, SwinBlock, WindowAttention


def _cut(x: Tensor, side: int) -> Tensor:
    batch, height, width, channels = x.shape
    x = x.view(batch, height // side, side, width // side, side, channels)
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, side * side, channels)


def _paste(windows: Tensor, side: int, height: int, width: int) -> Tensor:
    x = windows.view(-1, height // side, width // side, side, side, windows.shape[-1])
    return x.permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, height, width, windows.shape[-1])


def _mask(height: int, width: int, side: int, shift: int) -> Tensor:
    region = torch.zeros(1, height, width, 1)
    number = 0
    for rows in (slice(0, -side), slice(-side, -shift), slice(-shift, None)):
        for columns in (slice(0, -side), slice(-side, -shift), slice(-shift, None)):
            region[:, rows, columns] = number
            number += 1
    windows = _cut(region, side).squeeze(-1)
    difference = windows[:, None] - windows[:, :, None]
    return difference.masked_fill(difference != 0, -100.0).masked_fill(difference == 0, 0.0)


def _index(side: int) -> Tensor:
    token = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
    offset = (token[:, :, None] - token[:, None]).permute(1, 2, 0) + side - 1
    return offset[..., 0] * (2 * side - 1) + offset[..., 1]


def _attention(self: WindowAttention, index: Tensor, x: Tensor) -> Tensor:
    batch, height, width, dim = x.shape
    side, shift = self.window_size, self.shift
    mask = _mask(height, width, side, shift)
    if shift:
        x = torch.roll(x, (-shift, -shift), (1, 2))
    windows = _cut(x, side)
    count, length, _ = windows.shape
    qkv = self.qkv(windows).reshape(count, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
    query, key, value = qkv[0], qkv[1], qkv[2]
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    bias = self.relative_position_bias_table[index.view(-1)].view(length, length, -1).permute(2, 0, 1).contiguous()
    scores = scores + bias.unsqueeze(0)
    if shift:
        mask = mask.to(scores)
        scores = scores.view(batch, -1, self.num_heads, length, length) + mask[None, :, None]
        scores = scores.view(-1, self.num_heads, length, length)
    out = scores.softmax(-1) @ value
    out = _paste(self.proj(out.transpose(1, 2).reshape(count, length, dim)), side, height, width)
    return torch.roll(out, (shift, shift), (1, 2)) if shift else out


def _block(self: SwinBlock, x: Tensor) -> Tensor:
    x = x + self.drop_path(self.attn(self.norm1(x)))
    return x + self.drop_path(self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x)))))  # not by `Mlp`, which goes in pieces


def _adjusted(group: ResidualDenseGroup, k: int, tokens: Tensor) -> Tensor:
    """Tokens B, H, W, C through Swin block k and its convolution, as a map B, C', H, W."""
    volume = getattr(group, f"swin{k}")(tokens).flatten(1, 2).transpose(1, 2).reshape(len(tokens), -1, *tokens.shape[1:3]).contiguous()
    return getattr(group, f"adjust{k}")(volume)


def _group(self: ResidualDenseGroup, x: Tensor) -> Tensor:
    found = [x]
    for k in range(1, 5):
        volume = F.leaky_relu(_adjusted(self, k, torch.cat(found, -1)), 0.2)
        found.append(volume.flatten(2).transpose(1, 2).contiguous().unflatten(1, tuple(x.shape[1:3])))
    last = _adjusted(self, 5, torch.cat(found, -1)).flatten(2).transpose(1, 2).unflatten(1, tuple(x.shape[1:3]))
    return last * 0.2 + x


def _features(self: DRCT, shallow: Tensor) -> Tensor:
    x = shallow.permute(0, 2, 3, 1)
    if "norm" in self.patch_embed:
        x = self.patch_embed["norm"](x)
    if self.position_grid:
        x = x + self._positions(x.shape[1], x.shape[2])
    for layer in self.layers:
        x = layer(x)
    return self.norm(x).permute(0, 3, 1, 2).contiguous()


def _forward(self: DRCT, x: Tensor) -> Tensor:
    height, width = x.shape[2:]
    side = self.window_size
    down, right = (-height % side, -width % side) if self.padding == "reflect" else (side - height % side, side - width % side)
    if self.padding == "reflect":
        x = F.pad(x, (0, right, 0, down), mode="reflect")
    else:
        x = torch.cat([x, torch.flip(x, [2])], 2)[:, :, : height + down]
        x = torch.cat([x, torch.flip(x, [3])], 3)[:, :, :, : width + right]
    mean = torch.tensor(RGB_MEAN if self.in_channels == 3 else (0.0,) * self.in_channels).view(1, -1, 1, 1).to(x)
    shallow = self.conv_first((x - mean) * self.img_range)
    deep = self.conv_after_body(_features(self, shallow))
    out = self.conv_last(self.upsample(self.conv_before_upsample(deep + shallow)))
    return (out / self.img_range + mean)[:, :, : height * self.scale, : width * self.scale]


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = DRCT(**options)
    forwards = {SwinBlock: _block, ResidualDenseGroup: _group, DRCT: _forward}
    for module in model.modules():
        if type(module) in forwards:
            module.forward = forwards[type(module)].__get__(module)
        if isinstance(module, WindowAttention):
            module.forward = functools.partial(_attention, module, _index(module.window_size))  # type: ignore[method-assign]
    return model
