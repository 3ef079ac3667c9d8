"""The plain form of ViT: scores written out, every token of every block computed, contiguous maps."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.models.vit import Attention, Block, ViT


def attention(self: Attention, x: Tensor, rows: slice = slice(None)) -> Tensor:
    batch, length, dim = x.shape
    query, key, value = self.qkv(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
    weights = (query @ key.transpose(-2, -1) * (dim // self.num_heads) ** -0.5).softmax(dim=-1)
    return self.proj((weights @ value).transpose(1, 2).reshape(batch, length, dim))[:, rows]


def block(self: Block, x: Tensor, rows: slice = slice(None)) -> Tensor:
    x = x + self.drop_path(self.attn(self.norm1(x)))
    return (x + self.drop_path(self.mlp(self.norm2(x))))[:, rows]


FORWARDS = {Attention: attention, Block: block}


def _tokens(self: ViT, x: Tensor) -> Iterator[Tensor]:
    """All tokens after each block."""
    feature = self.patch_embed.proj(x)
    side, dim = self.grid[0], feature.shape[1]
    places = self.pos_embed[:, 1:].reshape(1, side, side, dim).permute(0, 3, 1, 2)
    places = F.interpolate(places, feature.shape[2:], mode="bicubic").flatten(2).transpose(1, 2)
    tokens = feature.flatten(2).transpose(1, 2).contiguous() + places
    x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), tokens], 1)
    for module in self.blocks:
        x = module(x)
        yield x


def _forward(self: ViT, x: Tensor) -> Tensor:
    *_, tokens = _tokens(self, x)
    pooled = self.norm(tokens)[:, 0] if self.pool == "token" else self.fc_norm(tokens[:, 1:].mean(1))
    return self.head(pooled)


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = plain(ViT(**options))
    model.forward = _forward.__get__(model)
    return model


def plain(model: Any) -> Any:
    """The same model, the forward passes of its blocks replaced by the plain ones."""
    for module in model.modules():
        if type(module) in FORWARDS:
            module.forward = FORWARDS[type(module)].__get__(module)
    return model
