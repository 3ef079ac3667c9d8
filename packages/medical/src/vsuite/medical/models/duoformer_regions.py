"""The transformer of DuoFormer: attention among the tokens of a region, then between the regions.

Axes: B batch, P regions, n tokens of a region, D channels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsuite.core.models.vit import ALL, Attention, Block


class NormalisedAttention(Attention):
    """Attention with a layer norm of each head's queries and keys."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.q_norm = nn.LayerNorm(dim // num_heads)
        self.k_norm = nn.LayerNorm(dim // num_heads)

    def _project(self, x: Tensor, rows: slice) -> Sequence[Tensor]:
        query, key, value = super()._project(x, rows)
        query, key = (
            norm(part.unflatten(-1, (self.num_heads, -1))).flatten(-2)
            for norm, part in ((self.q_norm, query), (self.k_norm, key))
        )  # fmt: skip
        return query, key, value


class PatchAttention(nn.Module):
    """Attention between regions and nothing else: no norm, no perceptron, and as published no residual."""

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False, residual: bool = False) -> None:
        super().__init__()
        self.attn = (NormalisedAttention if qk_norm else Attention)(dim, num_heads)
        self.residual = residual

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: B, N, D -> the same, or only the tokens of `rows`."""
        out = self.attn(x, rows)
        return x[:, rows] + out if self.residual else out


class RegionTransformer(nn.Module):
    """Scale blocks among the tokens of each region, patch attentions among the regions, classifier: B, P, n, D -> B, K.

    Of the last scale block and of the last patch attention only what is read after them is computed.

    Args:
        num_regions, num_tokens: P, n.
        num_classes: K.
        embed_dim, depth, num_heads, mlp_ratio: D; blocks of either kind; heads and hidden factor of each.
        average: take the mean of a region's tokens after the scale blocks rather than the first.
        patch_attention: without it, the regions are summed with learnt weights.
        patch_residual, qk_norm: see `DuoFormer`.
    """

    def __init__(
        self,
        num_regions: int,
        num_tokens: int,
        num_classes: int,
        *,
        embed_dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        average: bool = False,
        patch_attention: bool = True,
        patch_residual: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.average = average or not patch_attention
        self.patch_attention = patch_attention
        self.pos_embed_for_scale = nn.Parameter(torch.empty(1, 1, num_tokens, embed_dim))
        self.scaleBlocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio) for _ in range(depth))
        nn.init.trunc_normal_(self.pos_embed_for_scale, std=0.036)
        if patch_attention:
            self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
            self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_regions, embed_dim))
            self.blocks = nn.ModuleList(PatchAttention(embed_dim, num_heads, qk_norm, patch_residual) for _ in range(depth))
            nn.init.normal_(self.cls_token, std=0.036)
            nn.init.trunc_normal_(self.pos_embed, std=0.036)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
        if not patch_attention:
            self.region_weights = nn.Linear(num_regions, 1)
        self.head = nn.Linear(embed_dim, num_classes)

    def forward(self, tokens: Tensor) -> Tensor:
        regions = self.mix_scales(tokens)
        if not self.patch_attention:
            return self.head(self.region_weights(regions.transpose(1, 2)).squeeze(2))
        x = self.with_class_token(regions)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.head(self.blocks[-1](x, slice(0, 1))[:, 0])

    def mix_scales(self, tokens: Tensor) -> Tensor:
        """B, P, n, D -> B, P, D: one token a region."""
        x = (tokens + self.pos_embed_for_scale).flatten(0, 1)
        for block in self.scaleBlocks[:-1]:
            x = block(x)
        x = self.scaleBlocks[-1](x).mean(1) if self.average else self.scaleBlocks[-1](x, slice(0, 1))[:, 0]
        return x.unflatten(0, (-1, tokens.shape[1]))

    def with_class_token(self, regions: Tensor) -> Tensor:
        """B, P, D -> B, 1 + P, D with positions: what the first patch attention gets."""
        first = self.cls_token.to(regions.dtype).expand(regions.shape[0], -1, -1)
        return torch.cat([first, regions], 1) + self.pos_embed
