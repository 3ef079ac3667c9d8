"""The plain form of SegFormer3D: scores written out, every stage upsampled and concatenated, contiguous maps.

The baseline of the benchmark and the oracle of the tests. It shares the fast form's parameter names and nothing of
its operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.medical.models.segformer3d import Decoder, DepthwiseConvolution, EfficientSelfAttention, SegFormer3D


def _attention(self: EfficientSelfAttention, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    batch, length, dim = x.shape
    head = dim // self.num_heads
    query = self.query(x).reshape(batch, length, self.num_heads, head).permute(0, 2, 1, 3)
    if self.sr_ratio > 1:
        volume = x.permute(0, 2, 1).reshape(batch, dim, *grid)
        x = self.sr_norm(self.sr(volume).reshape(batch, dim, -1).permute(0, 2, 1))
    key, value = self.key_value(x).reshape(batch, -1, 2, self.num_heads, head).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) * self.scale).softmax(dim=-1)
    return self.proj((weights @ value).transpose(1, 2).reshape(batch, length, dim))


def _depthwise(self: DepthwiseConvolution, x: Tensor, grid: tuple[int, ...]) -> Tensor:
    batch, _, dim = x.shape
    volume = x.transpose(1, 2).reshape(batch, dim, *grid).contiguous()
    return self.bn(self.dwconv(volume)).flatten(2).transpose(1, 2)


def _decode(self: Decoder, *maps: Tensor) -> Tensor:
    resized = []
    for i in range(len(maps), 0, -1):
        volume = maps[i - 1].contiguous()
        tokens = getattr(self, f"linear_c{i}")(volume.flatten(2).transpose(1, 2))
        volume = tokens.permute(0, 2, 1).reshape(volume.shape[0], -1, *volume.shape[2:])
        resized.append(F.interpolate(volume, size=maps[0].shape[2:], mode="trilinear", align_corners=False) if i > 1 else volume)
    fused = self.linear_fuse(torch.cat(resized, dim=1))
    return F.interpolate(self.linear_pred(self.dropout(fused)), scale_factor=float(self.upsampling), mode="trilinear", align_corners=False)


def build(**options: Any) -> nn.Module:
    """The model that `create_model("segformer3d", **options)` builds, with the plain operators in place of the fast ones."""
    model = SegFormer3D(**options)
    plain = {EfficientSelfAttention: _attention, DepthwiseConvolution: _depthwise, Decoder: _decode}
    for module in model.modules():
        if type(module) in plain:
            module.forward = plain[type(module)].__get__(module)
    return model
