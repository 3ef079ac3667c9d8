"""The plain form of DuoFormer: tokens picked pixel by pixel, scores written out, every token of every block computed.

The baseline of the benchmark and the oracle of the tests. It shares the fast form's parameter names and nothing of its
operators.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.bench.plain import resnet, vit
from vsuite.medical.models.duoformer import Backbone, DuoFormer
from vsuite.medical.models.duoformer_regions import NormalisedAttention


def _backbone(self: Backbone, x: Tensor) -> list[Tensor]:
    maps = []
    for i in range(8):
        x = self[i](x)
        maps.append(x)
    return maps[4:]


def _attention(self: NormalisedAttention, x: Tensor, rows: slice = slice(None)) -> Tensor:
    batch, length, dim = x.shape
    query, key, value = self.qkv(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads).permute(2, 0, 3, 1, 4)
    scores = self.q_norm(query) @ self.k_norm(key).transpose(-2, -1) * (dim // self.num_heads) ** -0.5
    return self.proj((scores.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, length, dim))[:, rows]


def _region(maps: list[Tensor], row: int, column: int) -> Tensor:
    """The tokens of one region, B, n, D, from projected maps, deepest first."""
    tokens = []
    for depth, x in enumerate(maps):
        side = 2**depth
        places = [(i, j) for i in range(side) for j in range(side)]
        if side == 2:
            places = [(0, 0), (1, 0), (0, 1), (1, 1)]
        tokens += [x[:, :, row * side + i, column * side + j] for i, j in places]
    return torch.stack(tokens, 1)


def _tokens(self: DuoFormer, maps: list[Tensor]) -> Tensor:
    projected = [self.projection.get_submodule(f"proj_heads{i}")(maps[i]) for i in reversed(self.projection.used)]
    side = maps[3].shape[2]
    tokens = torch.stack([_region(projected, row, column) for row in range(side) for column in range(side)], 1)
    if self.scale_token == "random":
        tokens = torch.cat([self.channel_token.repeat(len(tokens), side**2, 1, 1), tokens], 2)
    if self.scale_token == "channel":
        pooled = nn.functional.max_pool2d(maps[2], 2)
        x = torch.cat([self.chann_proj1(maps[0]), self.chann_proj2(maps[1]), pooled, maps[3]], 1)
        layer: Any
        for layer in self.chann_proj_all.get_submodule("nConvs").children():
            x = torch.relu(layer.norm(layer.conv(x)))
        tokens = torch.cat([x.flatten(2).transpose(1, 2)[:, :, None], tokens], 2)
    return tokens


def _forward(self: DuoFormer, x: Tensor) -> Tensor:
    transformer: Any = self.vision_transformer
    tokens = self.tokens(self.features(x)) + transformer.pos_embed_for_scale
    batch, regions, number, dim = tokens.shape
    tokens = tokens.reshape(batch * regions, number, dim)
    for block in transformer.scaleBlocks:
        tokens = block(tokens)
    tokens = tokens.reshape(batch, regions, number, dim)
    if not transformer.patch_attention:
        weights = transformer.region_weights
        return transformer.head((tokens.mean(2) * weights.weight[0, :, None]).sum(1) + weights.bias)
    z = tokens.mean(2) if self.scale_token == "avg" else tokens[:, :, 0]
    z = torch.cat([transformer.cls_token.repeat(batch, 1, 1), z], 1) + transformer.pos_embed
    for block in transformer.blocks:
        out = block.attn(z)
        z = z + out if block.residual else out
    return transformer.head(z[:, 0])


FORWARDS = resnet.FORWARDS | vit.FORWARDS | {Backbone: _backbone, NormalisedAttention: _attention}


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = DuoFormer(**options)
    for module in model.modules():
        if type(module) in FORWARDS:
            module.forward = FORWARDS[type(module)].__get__(module)
    model.tokens = _tokens.__get__(model)  # type: ignore[method-assign]
    model.forward = _forward.__get__(model)  # type: ignore[method-assign]
    return model
