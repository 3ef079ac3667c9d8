"""Vision Transformer: an image as a sequence of square patches (Dosovitskiy et al., ICLR 2021), in the sizes of DeiT and MAE."""

from __future__ import annotations

import math
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
    map_to_tokens,
    resize_position_grid,
    tokens_to_map,
)
from vsuite.core.registry import OtherNames, PublishedLayout, PublishedResult, Variant, register_variants

Pool = Literal["mean", "token"]
ALL = slice(None)


class Attention(nn.Module):
    """Multi-head attention among all tokens, queries, keys and values from one linear layer.

    Args:
        dim: channels.
        num_heads: divides `dim`.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: B, N, C -> the same, or only the tokens of `rows`."""
        query, key, value = self._project(x, rows)
        return self.proj(attend(query, key, value, self.num_heads))

    def weights(self, x: Tensor) -> Tensor:
        """x: B, N, C -> B, heads, N, N: how much each token (third axis) takes from each (last axis, which sums to 1)."""
        query, key, _ = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self._project(x, ALL))
        return (query @ key.transpose(-2, -1) * query.shape[-1] ** -0.5).softmax(-1)

    def _project(self, x: Tensor, rows: slice) -> Sequence[Tensor]:
        if rows == ALL:
            return self.qkv(x).chunk(3, -1)
        dim = x.shape[-1]
        query = F.linear(x[:, rows], self.qkv.weight[:dim], self.qkv.bias[:dim])
        return query, *F.linear(x, self.qkv.weight[dim:], self.qkv.bias[dim:]).chunk(2, -1)


class Block(nn.Module):
    """Attention and perceptron, each after a layer norm and with a residual."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, rows: slice = ALL) -> Tensor:
        """x: B, N, C -> the same, or only the tokens of `rows`: all that a last block needs if the others are not read."""
        x = x[:, rows] + self.drop_path(self.attn(self.norm1(x), rows))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchEmbedding(nn.Module):
    """Each patch through one linear layer, as a convolution. B, C, H, W -> B, D, H // patch, W // patch."""

    def __init__(self, in_channels: int, dim: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, dim, patch_size, patch_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x.contiguous(memory_format=torch.channels_last))


def check_sizes(
    prefix: str = "", *, image_size: int, patch_size: int, embed_dim: int, depth: int, num_heads: int, mlp_ratio: float
) -> None:
    """Raises `InputError` for sizes that no encoder can have; `prefix` begins the names of its own options."""
    numbers = {"patch_size": patch_size, f"{prefix}embed_dim": embed_dim, f"{prefix}depth": depth, f"{prefix}num_heads": num_heads}
    for name, value in numbers.items():
        if value < 1:
            raise InputError(f"{name} must be 1 or more; got {value}")
    if image_size < 1 or image_size % patch_size:
        raise InputError(f"image_size must be a positive multiple of the patch size {patch_size}; got {image_size}")
    if embed_dim % num_heads:
        raise InputError(f"{prefix}embed_dim must be divisible by {prefix}num_heads; {embed_dim} is not by {num_heads}")
    if not 0 < mlp_ratio < math.inf:
        raise InputError(f"mlp_ratio must be above 0; got {mlp_ratio}")


class ViT(ImageBackbone):
    """Patches, a class token, a learnt position table, and blocks: one scale, of which up to four depths are given as features.

    Sides are free from one patch up; rows and columns beyond a multiple of the patch are not seen. The position table is
    resized (bicubic) for other sizes than `image_size`.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        image_size: side in pixels of the square images that the position table is made for.
        patch_size: side of a patch in pixels.
        embed_dim, depth, num_heads: width of a token, number of blocks, heads of each.
        mlp_ratio: hidden factor of the perceptrons.
        drop_path_rate: of the last block; rises linearly from 0.
        pool: what is classified. "mean": the mean of the patch tokens, then the norm `fc_norm`, as masked autoencoders are
            fine-tuned; the class token only takes part in the attention. "token": the class token after the norm `norm`, as
            in ViT and DeiT.
        head_init_scale: factor on the classifier's initial weights (0.001 for fine-tuning, as published).
    """

    no_decay = frozenset({"cls_token", "pos_embed"})
    norm: nn.LayerNorm
    fc_norm: nn.LayerNorm

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        image_size: int = 224,
        patch_size: int = 16,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        pool: Pool = "mean",
        head_init_scale: float = 1.0,
    ) -> None:
        super().__init__(in_channels, num_classes)
        check_sizes(
            image_size=image_size, patch_size=patch_size, embed_dim=embed_dim, depth=depth, num_heads=num_heads, mlp_ratio=mlp_ratio
        )
        if pool not in ("mean", "token"):
            raise InputError(f"pool is 'mean' or 'token'; got {pool!r}")
        self.pool = pool
        self.grid = (image_size // patch_size, image_size // patch_size)
        stages = min(4, depth)
        self.ends = [depth * (i + 1) // stages for i in range(stages)]  # the block after which each map is taken
        self.feature_info = tuple(FeatureInfo(f"blocks.{end - 1}", embed_dim, patch_size) for end in self.ends)
        self.size_rule = SizeRule(minimum=patch_size)
        self.num_features = embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + self.grid[0] * self.grid[1], embed_dim))
        self.patch_embed = PatchEmbedding(in_channels, embed_dim, patch_size)
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.add_module("fc_norm" if pool == "mean" else "norm", nn.LayerNorm(embed_dim, eps=1e-6))
        self.apply(initialise)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        self.head = self.make_head(num_classes)
        if isinstance(self.head, nn.Linear):
            self.head.weight.data.mul_(head_init_scale)

    def embed(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """B, C, H, W -> tokens with their positions (B, 1 + N, D), the class token first, and the grid of the others."""
        feature = self.patch_embed(x)
        grid = feature.shape[2], feature.shape[3]
        table: Tensor = self.pos_embed
        if torch.compiler.is_exporting() or grid != self.grid:  # a graph with free sides must not ask for the size
            table = resize_position_grid(table, self.grid, grid, num_extra=1)
        first = (self.cls_token + table[:, :1]).expand(x.shape[0], -1, -1)  # len() would fix the batch of an export
        return torch.cat([first, map_to_tokens(feature) + table[:, 1:]], 1), grid

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        tokens, grid = self.embed(x)
        for i, block in enumerate(self.blocks, 1):
            tokens = self.run(block, tokens)
            if i in self.ends:
                yield tokens_to_map(tokens[:, 1:], grid)

    def forward_tokens(self, x: Tensor) -> Tensor:
        """B, C, H, W -> all tokens after the last block, B, 1 + N, D, the class token first; no norm is applied."""
        self.check_input(x)
        tokens, _ = self.embed(x)
        for block in self.blocks:
            tokens = self.run(block, tokens)
        return tokens

    def attention_maps(self, x: Tensor) -> Iterator[Tensor]:
        """How much each token takes from each, in every block, first to last: B, heads, 1 + N, 1 + N, rows that sum to 1."""
        self.check_input(x)
        tokens, _ = self.embed(x)
        for block in self.blocks:
            assert isinstance(block, Block)
            yield block.attn.weights(block.norm1(tokens))
            tokens = block(tokens)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool == "mean":
            return super().forward(x)
        self.check_input(x)
        tokens, _ = self.embed(x)
        for block in self.blocks[:-1]:
            tokens = self.run(block, tokens)
        return self.forward_head(self.run(self.blocks[-1], tokens, slice(0, 1)))  # of the last block only that token is read

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        """The last map (B, D, H, W), or with `pool="token"` the class token (B, 1, D), -> logits.

        Raises:
            InputError: for a map where the class token is what is classified: no map holds it.
        """
        if self.pool == "token" and feature.ndim == 4:
            raise InputError("this ViT classifies its class token, which no map holds: call the model, or build it with pool='mean'")
        pooled = self.norm(feature[:, 0]) if self.pool == "token" else self.fc_norm(map_to_tokens(feature).mean(1))
        return pooled if pre_logits else self.head(pooled)

    def parts(self) -> list[list[nn.Module]]:
        # The tables belong to the stem: a module holds them, so that they freeze with it.
        tables = nn.ParameterList([self.cls_token, self.pos_embed]).train(self.patch_embed.training)
        starts = [0, *self.ends[:-1]]
        return [[self.patch_embed, tables], *(list(self.blocks[a:b]) for a, b in zip(starts, self.ends, strict=True))]

    def layer_id(self, name: str) -> int:
        """0 the class token, the positions and the patches; then one a block; the largest the head and its norm."""
        if name.startswith("blocks."):
            return 1 + int(name.split(".")[1])
        return 0 if name.startswith(("cls_token", "pos_embed", "patch_embed.")) else 1 + len(self.blocks)


def initialise(module: nn.Module) -> None:
    """For `model.apply`: linear layers and the patches' convolution, taken for a linear layer, Xavier uniform; biases zero."""
    if isinstance(module, nn.Linear | nn.Conv2d):
        nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def infer_encoder(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor options of an encoder from the names and shapes of a checkpoint.

    Heads leave no trace: they are 64 wide in all published models but the huge one, which has 16.
    """
    dim, in_channels, patch_size = (int(side) for side in state["patch_embed.proj.weight"].shape[:3])
    return {
        "in_channels": in_channels,
        "image_size": patch_size * math.isqrt(state["pos_embed"].shape[1] - 1),
        "patch_size": patch_size,
        "embed_dim": dim,
        "depth": sum(bool(re.fullmatch(r"blocks\.\d+\.norm1\.weight", name)) for name in state),
        "num_heads": 16 if dim == 1280 else max(1, dim // 64),
        "mlp_ratio": len(state["blocks.0.mlp.fc1.weight"]) / dim,
    }


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return infer_encoder(state) | {
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        # A masked autoencoder's own norm is not that of its fine-tuned classifier, which starts afresh.
        "pool": "token" if "norm.weight" in state and "mask_token" not in state else "mean",
    }


def resize_tables(name: str, value: Tensor, shape: Sequence[int]) -> Tensor | None:
    """Position tables of another square grid; see `PublishedLayout.resize`."""
    if name not in ("pos_embed", "decoder_pos_embed") or value.ndim != 3 or value.shape[2] != shape[2]:
        return None
    before, after = (math.isqrt(rows - 1) for rows in (value.shape[1], shape[1]))
    if before < 1 or (1 + before**2, 1 + after**2) != (value.shape[1], shape[1]):
        return None
    return resize_position_grid(value, (before, before), (after, after), num_extra=1)


TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.head\.", "head."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(?:linear_1|0)\.", ".mlp.fc1."),
    (r"\.mlp\.(?:linear_2|3)\.", ".mlp.fc2."),
)


def _from_torchvision(name: str) -> str:
    for pattern, ours in TORCHVISION:
        name = re.sub(pattern, ours, name)
    return name


ENCODER_KEYS = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "blocks.0.mlp.fc1.weight")
LAYOUT = PublishedLayout(
    build=ViT,
    infer=_infer,
    keys=ENCODER_KEYS,
    others=(OtherNames("torchvision", ("class_token", "encoder.pos_embedding", "conv_proj.weight"), _from_torchvision),),
    ignored=("decoder_*", "mask_token"),  # a masked autoencoder's encoder is a ViT
    fresh=("fc_norm.*", "head.*"),
    head="head.",
    norm="norm.",
    stem="patch_embed.proj.weight",
    resize=resize_tables,
)


def _results(*, chest: Mapping[str, float], imagenet: Mapping[str, float]) -> tuple[PublishedResult, ...]:
    """Data set or training -> value."""
    metrics = {"COVIDx": "accuracy"}
    medical = [PublishedResult(name, metrics.get(name.split(",")[0], "mean AUC"), value, "%") for name, value in chest.items()]
    return (*medical, *(PublishedResult(f"ImageNet-1K, 224 pixels, {name}", "top-1", value, "%") for name, value in imagenet.items()))


SMALL = {"embed_dim": 384, "num_heads": 6}
LARGE = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
HUGE = {"patch_size": 14, "embed_dim": 1280, "depth": 32, "num_heads": 16}

register_variants(
    ViT,
    {
        "vit_tiny_patch16": Variant(
            {"embed_dim": 192, "num_heads": 3}, "5.7 M parameters, 1.3 G MACs", _results(chest={}, imagenet={"DeiT": 72.2})
        ),
        "vit_small_patch16": Variant(
            SMALL,
            "22.0 M parameters, 4.6 G MACs",
            _results(
                chest={
                    "ChestX-ray14, pre-trained with MAE on 0.3 M X-rays": 82.3,
                    "ChestX-ray14, pre-trained on ImageNet labels (DeiT)": 79.6,
                    "ChestX-ray14, pre-trained with MAE on ImageNet": 78.6,
                    "CheXpert, pre-trained with MAE on 0.3 M X-rays": 89.2,
                    "COVIDx, pre-trained with MAE on 0.3 M X-rays": 95.2,
                },
                imagenet={"DeiT": 79.8},
            ),
        ),
        "vit_base_patch16": Variant(
            {},
            "86.6 M parameters, 17.6 G MACs",
            _results(
                chest={
                    "ChestX-ray14, pre-trained with MAE on 0.5 M X-rays": 83.0,
                    "CheXpert, pre-trained with MAE on 0.5 M X-rays": 89.3,
                    "COVIDx, pre-trained with MAE on 0.5 M X-rays": 95.3,
                },
                imagenet={"DeiT": 81.8, "MAE": 83.6},
            ),
        ),
        "vit_large_patch16": Variant(LARGE, "304.3 M parameters, 61.6 G MACs", _results(chest={}, imagenet={"MAE": 85.9})),
        "vit_huge_patch14": Variant(HUGE, "632.0 M parameters, 167.4 G MACs", _results(chest={}, imagenet={"MAE": 86.9})),
    },
    system="vit",
    task="classification",
    paper="An Image is Worth 16x16 Words, Dosovitskiy et al., ICLR 2021, arXiv 2010.11929; chest X-rays: arXiv 2210.12843",
    licence="Apache-2.0 (ViT, DeiT and medical MAE code and weights)",
    layout=LAYOUT,
)
