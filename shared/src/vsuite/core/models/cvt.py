"""CvT: a three-stage transformer whose embeddings and projections start with convolutions (Wu et al., ICCV 2021)."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import (
    DropPath,
    FeatureInfo,
    ImageBackbone,
    Mlp,
    SizeRule,
    attend,
    drop_path_rates,
    fold_batch_norm,
    map_to_tokens,
    tokens_to_map,
)
from vsuite.core.registry import OtherNames, PublishedLayout, PublishedResult, Variant, register_variants

Grid = tuple[int, ...]
Projection = Literal["dw_bn", "avg"]


def quick_gelu(x: Tensor) -> Tensor:
    """x sigmoid(1.702 x), with which the published weights were trained; not the exact GELU."""
    return x * torch.sigmoid(1.702 * x)


class PatchEmbedding(nn.Module):
    """Overlapping strided convolution, then layer norm over channels. B, C, H, W -> (B, N, C'), grid."""

    def __init__(self, in_channels: int, dim: int, kernel_size: int, stride: int, padding: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, kernel_size, stride, padding)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> tuple[Tensor, Grid]:
        x = self.proj(x)
        return self.norm(map_to_tokens(x)), tuple(x.shape[2:])


class DepthwiseProjection(nn.Module):
    """Depthwise 3x3 convolution and batch norm. B, C, H, W -> B, C, ceil(H / stride), ceil(W / stride)."""

    def __init__(self, dim: int, stride: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(dim, dim, 3, stride, padding=1, groups=dim, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))

    def fold(self) -> None:
        if isinstance(self.bn, nn.BatchNorm2d):
            fold_batch_norm(self.conv, self.bn)
            self.bn = nn.Identity()


class Attention(nn.Module):
    """Attention whose queries, keys and values are first convolved as maps; keys and values at half the resolution.

    Args:
        dim, num_heads: width, and heads that divide it. Scores are scaled by the whole width: 1 / sqrt(dim).
        projection: "dw_bn", a depthwise convolution with batch norm, or "avg", which averages for keys and values and
            leaves queries as they are.
        class_token: whether the first token is a class token, which the convolutions pass by.
    """

    def __init__(self, dim: int, num_heads: int, projection: Projection = "dw_bn", class_token: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_extra = int(class_token)
        self.conv_proj_q = _projection(projection, dim, stride=1)
        self.conv_proj_k = _projection(projection, dim, stride=2)
        self.conv_proj_v = _projection(projection, dim, stride=2)
        self.proj_q = nn.Linear(dim, dim)
        self.proj_k = nn.Linear(dim, dim)
        self.proj_v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, grid: Grid, token_only: bool = False) -> Tensor:
        """x: B, N, C with N the product of `grid`, and one more with a class token -> the same shape, or that token's row."""
        extra, feature = x[:, : self.num_extra], tokens_to_map(x[:, self.num_extra :], grid)
        query = self.proj_q(extra if token_only else self._tokens(self.conv_proj_q(feature), extra))
        key = self.proj_k(self._tokens(self.conv_proj_k(feature), extra))
        value = self.proj_v(self._tokens(self.conv_proj_v(feature), extra))
        return self.proj(attend(query, key, value, self.num_heads, scale=x.shape[-1] ** -0.5))

    def _tokens(self, feature: Tensor, extra: Tensor) -> Tensor:
        tokens = map_to_tokens(feature)
        return torch.cat([extra, tokens], 1) if self.num_extra else tokens


def _projection(kind: Projection, dim: int, stride: int) -> nn.Module:
    if kind == "dw_bn":
        return DepthwiseProjection(dim, stride)
    return nn.AvgPool2d(3, stride, padding=1, ceil_mode=True) if stride > 1 else nn.Identity()


class Block(nn.Module):
    """Pre-norm transformer block: convolutional attention, then a perceptron with QuickGELU, each with a residual."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, projection: Projection, class_token: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, projection, class_token)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), quick_gelu)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, grid: Grid, token_only: bool = False) -> Tensor:
        """x: B, N, C -> the same shape; with `token_only` just the class token B, 1, C, as the last block of a classifier needs."""
        attended = self.attn(self.norm1(x), grid, token_only)
        x = x[:, : attended.shape[1]] + self.drop_path(attended)
        return x + self.drop_path(self.mlp(self.norm2(x)))

    @torch.no_grad()
    def fold(self) -> None:
        """QuickGELU becomes SiLU, one pass instead of three: x sigmoid(1.702 x) = silu(1.702 x) / 1.702."""
        if self.mlp.activation is quick_gelu:
            self.mlp.fc1.weight.mul_(1.702)
            self.mlp.fc1.bias.mul_(1.702)
            self.mlp.fc2.weight.div_(1.702)
            self.mlp.activation = F.silu


class Stage(nn.Module):
    """Patch embedding, the class token if there is one, and blocks, which the model runs."""

    def __init__(self, embedding: PatchEmbedding, blocks: Sequence[Block], dim: int, class_token: bool) -> None:
        super().__init__()
        self.patch_embed = embedding
        self.blocks = nn.ModuleList(blocks)
        self.num_extra = int(class_token)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim)) if class_token else None

    def embed(self, x: Tensor) -> tuple[Tensor, Grid]:
        """B, C, H, W -> tokens (B, N, C') with the class token first, and the grid of the others."""
        tokens, grid = self.patch_embed(x)
        if self.cls_token is not None:
            tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], 1)
        return tokens, grid


class CvT(ImageBackbone):
    """Three stages at strides 4, 8, 16, without position embeddings: sides are free from 3 pixels up.

    Grids: floor((side - 3) / 4) + 1, then half of it, rounded up, twice.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        depths, embed_dims, num_heads: blocks, width and heads of each stage.
        mlp_ratio: hidden factor of the perceptrons.
        drop_path_rate: of the last block; rises linearly from 0 over the blocks of the last stage, the others have none.
        projections: of each stage, see `Attention`.
        class_token: classify a token of its own, which joins in the last stage; otherwise the mean of the last map.
    """

    no_decay = frozenset({"cls_token"})

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (1, 2, 10),
        embed_dims: Sequence[int] = (64, 192, 384),
        num_heads: Sequence[int] = (1, 3, 6),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        projections: Sequence[Projection] = ("dw_bn", "dw_bn", "dw_bn"),
        class_token: bool = True,
    ) -> None:
        super().__init__(in_channels, num_classes)
        _check_options(depths, embed_dims, num_heads, projections)
        self.feature_info = tuple(FeatureInfo(f"stage{i}", dim, 4 << i) for i, dim in enumerate(embed_dims))
        self.size_rule = SizeRule(minimum=3)
        self.num_features = embed_dims[-1]
        self.class_token = class_token
        rates = [[0.0] * depths[0], [0.0] * depths[1], *drop_path_rates(drop_path_rate, depths[2:])]
        for i, dim in enumerate(embed_dims):
            embedding = PatchEmbedding(in_channels, dim, 7, 4, 2) if i == 0 else PatchEmbedding(embed_dims[i - 1], dim, 3, 2, 1)
            extra = class_token and i == 2
            blocks = [Block(dim, num_heads[i], mlp_ratio, rate, projections[i], extra) for rate in rates[i]]
            self.add_module(f"stage{i}", Stage(embedding, blocks, dim, extra))
        self.norm = nn.LayerNorm(self.num_features)
        self.head = self.make_head(num_classes)
        self.apply(_initialise)

    def stages(self) -> list[Stage]:
        return [self.get_submodule(f"stage{i}") for i in range(3)]  # type: ignore[misc]

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        for stage in self.stages():
            tokens, grid = self._run_stage(stage, x)
            x = tokens_to_map(tokens[:, stage.num_extra :], grid)
            yield x

    def _run_stage(self, stage: Stage, x: Tensor, token_only: bool = False) -> tuple[Tensor, Grid]:
        """With `token_only` the last block computes the class token alone (but in training, which moves all statistics)."""
        tokens, grid = stage.embed(x)
        for i, block in enumerate(stage.blocks, 1):
            tokens = self.run(block, tokens, grid, token_only and not self.training and i == len(stage.blocks))
        return tokens, grid

    def forward(self, x: Tensor) -> Tensor:
        if not self.class_token:
            return super().forward(x)
        (feature,) = self.features(x, [1])
        token, _ = self._run_stage(self.stages()[2], feature, token_only=True)
        return self.forward_head(token)

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The class token (B, 1, C) of a model that has one, else the last map (B, C, H, W) -> logits.

        Raises:
            InputError: for a map where there is a class token: that is what the classifier reads, and no map holds it.
        """
        if self.class_token and feature.ndim == 4:
            raise InputError("this CvT classifies its class token, which no map holds: call the model, or build it with class_token=False")
        tokens = feature if self.class_token else map_to_tokens(feature)
        pooled = self.norm(tokens).mean(1)
        return pooled if pre_logits else self.head(pooled)

    def parts(self) -> list[list[nn.Module]]:
        first, second, third = self.stages()
        return [[first.patch_embed], [first.blocks], [second], [third]]

    def layer_id(self, name: str) -> int:
        """0 the first embedding, then one a block; later embeddings and the class token go with the block that follows."""
        found = re.match(r"stage(\d)\.(?:blocks\.(\d+))?", name)
        starts = list(itertools.accumulate((len(stage.blocks) for stage in self.stages()), initial=1))
        if not found:
            return starts[-1]
        stage, block = int(found[1]), found[2]
        return 0 if stage == 0 and block is None else starts[stage] + int(block or 0)


def _check_options(depths: Sequence[int], dims: Sequence[int], heads: Sequence[int], projections: Sequence[str]) -> None:
    for name, values in (("depths", depths), ("embed_dims", dims), ("num_heads", heads), ("projections", projections)):
        if len(values) != 3:
            raise InputError(f"CvT has 3 stages; got {name} {list(values)}")
    for dim, count in zip(dims, heads, strict=True):
        if dim % count:
            raise InputError(f"each of embed_dims must be divisible by its num_heads; {dim} is not by {count}")
    for kind in projections:
        if kind not in ("dw_bn", "avg"):
            raise InputError(f"projections are 'dw_bn' or 'avg'; got {kind!r}")


def _initialise(module: nn.Module) -> None:
    """Linear layers and class tokens truncated normal (0.02); convolutions and norms as PyTorch has them."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, Stage) and module.cls_token is not None:
        nn.init.trunc_normal_(module.cls_token, std=0.02)


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Constructor options from the shapes of a published checkpoint. Heads are 64 wide in every release."""
    dims = [len(state[f"stage{i}.patch_embed.proj.weight"]) for i in range(3)]
    return {
        "in_channels": int(state["stage0.patch_embed.proj.weight"].shape[1]),
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "depths": [sum(bool(re.fullmatch(rf"stage{i}\.blocks\.\d+\.norm1\.weight", name)) for name in state) for i in range(3)],
        "embed_dims": dims,
        "num_heads": [max(1, dim // 64) for dim in dims],
        "mlp_ratio": len(state["stage0.blocks.0.mlp.fc1.weight"]) / dims[0],
        "projections": ["dw_bn" if f"stage{i}.blocks.0.attn.conv_proj_k.conv.weight" in state else "avg" for i in range(3)],
        "class_token": "stage2.cls_token" in state,
    }


def _from_transformers(name: str) -> str:
    name = re.sub(r"^cvt\.encoder\.stages\.(\d)\.", r"stage\1.", name)
    name = re.sub(r"^layernorm\.", "norm.", re.sub(r"^classifier\.", "head.", name))
    name = name.replace(".embedding.convolution_embeddings.projection.", ".patch_embed.proj.")
    name = name.replace(".embedding.convolution_embeddings.normalization.", ".patch_embed.norm.").replace(".layers.", ".blocks.")
    name = name.replace(".layernorm_before.", ".norm1.").replace(".layernorm_after.", ".norm2.")
    name = re.sub(r"\.attention\.attention\.convolution_projection_(\w)\w+\.convolution_projection\.", r".attn.conv_proj_\1.", name)
    name = re.sub(r"(\.conv_proj_\w)\.convolution\.", r"\1.conv.", re.sub(r"(\.conv_proj_\w)\.normalization\.", r"\1.bn.", name))
    name = re.sub(r"\.attention\.attention\.projection_(\w)\w+\.", r".attn.proj_\1.", name)
    name = name.replace(".attention.output.dense.", ".attn.proj.")
    return name.replace(".intermediate.dense.", ".mlp.fc1.").replace(".output.dense.", ".mlp.fc2.")


LAYOUT = PublishedLayout(
    build=CvT,
    infer=_infer,
    keys=("stage0.patch_embed.proj.weight", "stage2.patch_embed.proj.weight", "stage0.blocks.0.attn.proj_q.weight"),
    others=(OtherNames("transformers", ("cvt.encoder.stages.0.embedding.convolution_embeddings.projection.weight",), _from_transformers),),
    head="head.",
    norm="norm.",
    stem="stage0.patch_embed.proj.weight",
)

PIXELS_384 = (3, 384, 384)


def _top1(*, in1k: float | None = None, in22k: float | None = None, pixels: int = 384) -> tuple[PublishedResult, ...]:
    values = {"ImageNet-1K": in1k, "ImageNet-1K, pre-trained on 22K": in22k}
    return tuple(PublishedResult(f"{name}, {pixels} pixels", "top-1", value, "%") for name, value in values.items() if value is not None)


register_variants(
    CvT,
    {
        "cvt_13": Variant({}, "20.0 M parameters, 4.6 G MACs", _top1(in1k=81.6, pixels=224)),
        "cvt_13_384": Variant({}, "20.0 M parameters, 16.3 G MACs", _top1(in1k=83.0, in22k=83.3), PIXELS_384),
        "cvt_21": Variant({"depths": (1, 4, 16)}, "31.6 M parameters, 7.2 G MACs", _top1(in1k=82.5, pixels=224)),
        "cvt_21_384": Variant({"depths": (1, 4, 16)}, "31.6 M parameters, 24.9 G MACs", _top1(in1k=83.3, in22k=84.9), PIXELS_384),
        "cvt_w24": Variant(
            {"depths": (2, 2, 20), "embed_dims": (192, 768, 1024), "num_heads": (3, 12, 16)},
            "277.2 M parameters, 194.2 G MACs; published with ImageNet-22K pre-training only",
            _top1(in22k=87.7),
            PIXELS_384,
        ),
    },
    system="cvt",
    task="classification",
    paper="CvT: Introducing Convolutions to Vision Transformers, Wu et al., ICCV 2021, arXiv 2103.15808",
    licence="MIT (official code and weights)",
    layout=LAYOUT,
)
