"""The plain form of CvT: contiguous maps, tokens copied into maps and back, scores written out, nothing folded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.models.cvt import Attention, CvT, Grid, PatchEmbedding


def _embed(self: PatchEmbedding, x: Tensor) -> tuple[Tensor, Grid]:
    x = self.proj(x)
    tokens = self.norm(x.flatten(2).transpose(1, 2).contiguous())
    return tokens, tuple(x.shape[2:])


def _attention(self: Attention, x: Tensor, grid: Grid, token_only: bool) -> Tensor:
    assert not token_only
    batch, length, dim = x.shape
    extra, feature = x[:, : self.num_extra], x[:, self.num_extra :].transpose(1, 2).reshape(batch, dim, *grid).contiguous()

    def projected(name: str) -> Tensor:
        tokens = self.get_submodule(f"conv_proj_{name}")(feature).flatten(2).transpose(1, 2)
        tokens = self.get_submodule(f"proj_{name}")(torch.cat([extra, tokens], 1))
        return tokens.reshape(batch, -1, self.num_heads, dim // self.num_heads).permute(0, 2, 1, 3)

    weights = (projected("q") @ projected("k").transpose(-2, -1) * dim**-0.5).softmax(dim=-1)
    return self.proj((weights @ projected("v")).transpose(1, 2).reshape(batch, length, dim))


def _run_stages(self: CvT, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    for stage in self.stages():
        tokens, grid = stage.embed(x)
        for block in stage.blocks:
            tokens = block(tokens, grid)
        x = tokens[:, stage.num_extra :].transpose(1, 2).reshape(len(x), -1, *grid).contiguous()
        yield tokens[:, : stage.num_extra], x


def _pyramid(self: CvT, x: Tensor) -> Iterator[Tensor]:
    for _, feature in _run_stages(self, x):
        yield feature


def _forward(self: CvT, x: Tensor) -> Tensor:
    *_, (token, feature) = _run_stages(self, x)
    return self.forward_head(token if self.class_token else feature)


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = CvT(**options)
    forwards: dict[type, Any] = {PatchEmbedding: _embed, Attention: _attention}
    for module in model.modules():
        if type(module) in forwards:
            module.forward = forwards[type(module)].__get__(module)
    model.pyramid = _pyramid.__get__(model)  # type: ignore[method-assign]
    model.forward = _forward.__get__(model)  # type: ignore[method-assign]
    return model
