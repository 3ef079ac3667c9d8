"""The plain form of Swin V2: as Swin's, with the bias network evaluated in each block."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.bench.plain.swin import four_slices, in_windows, relative_index, softmax_attention, with_forwards
from vsuite.core.models.swin_v2 import CosineWindowAttention, PatchMerging, SwinV2


def _position_bias(self: CosineWindowAttention) -> Tensor:
    (h, w), trained, device = self.window, self.pretrained_window, self.logit_scale.device
    rows = torch.arange(-(h - 1), h, dtype=torch.float32, device=device) / max(trained[0] - 1, 1)
    columns = torch.arange(-(w - 1), w, dtype=torch.float32, device=device) / max(trained[1] - 1, 1)
    offsets = 8 * torch.stack(torch.meshgrid(rows, columns, indexing="ij")).permute(1, 2, 0).contiguous()
    offsets = torch.sign(offsets) * torch.log2(offsets.abs() + 1.0) / math.log2(8)
    table = self.cpb_mlp(offsets.unsqueeze(0)).view(-1, self.num_heads)
    bias = table[relative_index(h, w, device).view(-1)].view(h * w, h * w, -1).permute(2, 0, 1).contiguous()
    return 16 * torch.sigmoid(bias)


def _attend(self: CosineWindowAttention, x: Tensor, mask: Tensor | None) -> Tensor:
    batch, length, dim = x.shape
    bias = torch.cat((self.q_bias, torch.zeros_like(self.v_bias), self.v_bias))
    query_key_value = F.linear(x, self.qkv.weight, bias).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
    query, key, value = query_key_value.permute(2, 0, 3, 1, 4)
    scale = self.logit_scale.clamp(max=math.log(100)).exp()
    # The scale stands on the scores in the published code; on the queries it is the same product.
    return self.proj(softmax_attention(F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1), value, _position_bias(self), mask))


def _merge(self: PatchMerging, x: Tensor) -> Tensor:
    return self.norm(self.reduction(four_slices(x)))


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    return with_forwards(SwinV2(**options), {CosineWindowAttention: in_windows(_attend), PatchMerging: _merge})
