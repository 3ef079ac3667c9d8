"""Swin Transformer: attention within small windows that shift from block to block (Liu et al., ICCV 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.models.window_backbone import (
    BASE,
    LARGE,
    LICENCE,
    TABLES,
    TIMM,
    ShiftedWindowAttention,
    WindowBackbone,
    infer_stages,
    merge_patches,
    top1,
    variant,
)
from vsuite.core.nn import DropPath, Mlp, attend, gather_position_bias, resize_position_table, square_window_of
from vsuite.core.registry import PublishedLayout, register_variants


class WindowAttention(ShiftedWindowAttention):
    """Dot-product attention with a learnt bias for each head and offset between query and key.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        window: h, w.
    """

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int]) -> None:
        super().__init__(window)
        self.num_heads = num_heads
        offsets = (2 * window[0] - 1) * (2 * window[1] - 1)
        self.relative_position_bias_table = nn.Parameter(nn.init.trunc_normal_(torch.empty(offsets, num_heads), std=0.02))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def position_bias(self) -> Tensor:
        return gather_position_bias(self.relative_position_bias_table, self.window)

    def attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        query, key, value = self.qkv(windows).chunk(3, -1)
        return self.proj(attend(query, key, value, self.num_heads, bias=bias))


class Block(nn.Module):
    """Window attention and perceptron, each after a layer norm and with a residual. B, H, W, C -> the same."""

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int], drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowAttention(dim, num_heads, window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, shift: bool) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), shift))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class PatchMerging(nn.Module):
    """2 x 2 tokens -> one of twice the width, after padding odd sides: B, H, W, C -> B, ceil(H / 2), ceil(W / 2), 2C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.reduction(self.norm(merge_patches(x)))


class Swin(WindowBackbone):
    """Swin Transformer. Any size from 1 pixel up; see `WindowBackbone` for what happens at the size of the published classifier.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        embed_dim: width of the first stage; doubles from stage to stage.
        depths, num_heads: blocks, and heads in each of them, of each stage.
        window_size: side of a window in tokens.
        drop_path_rate: of the last block; rises linearly from 0.
        image_size: a side or H, W in pixels: inputs of this size follow the rule of the published classifiers, and windows that
            are larger than a stage's map at this size shrink to it. None: the rule of the dense backbones at every size.
        absolute_pos_embed: add a learnt table to the patches, made for `image_size` and resized (bicubic) for other sizes.
        stage_norms: build the norms `norm0` to `norm3` of the published dense backbones, in place of the classifier's `norm`;
            windows are shifted at every size then.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        image_size: int | Sequence[int] | None = None,
        absolute_pos_embed: bool = False,
        stage_norms: bool = False,
    ) -> None:
        super().__init__(
            lambda stage, dim, window, rate: Block(dim, num_heads[stage], window, rate),
            PatchMerging,
            in_channels=in_channels,
            num_classes=num_classes,
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            image_size=image_size,
            stage_norms=stage_norms,
        )
        self.absolute_pos_embed = None
        if absolute_pos_embed:
            if self.image_size is None:
                raise InputError("absolute_pos_embed needs image_size, the size that its table is made for")
            self.grid = tuple(-(-side // 4) for side in self.image_size)
            table = torch.empty(1, self.grid[0] * self.grid[1], embed_dim)
            self.absolute_pos_embed = nn.Parameter(nn.init.trunc_normal_(table, std=0.02))

    def embed(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x)
        if self.absolute_pos_embed is None:
            return x
        table = self.absolute_pos_embed.unflatten(1, self.grid).permute(0, 3, 1, 2)
        if torch.compiler.is_compiling() or x.shape[1:3] != self.grid:
            table = F.interpolate(table, x.shape[1:3], mode="bicubic")
        return x + table.permute(0, 2, 3, 1)

    def freeze(self, stages: int) -> None:
        super().freeze(stages)
        if self.absolute_pos_embed is not None:
            self.absolute_pos_embed.requires_grad_(stages < 0)


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    found = infer_stages(state)
    tables = [state[f"layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(len(found["depths"]))]
    windows = [square_window_of(len(table)) or 0 for table in tables]
    image_size: Any = windows[-1] << (len(windows) + 1)  # all published classifiers end in a map of one window
    absolute = state.get("absolute_pos_embed")
    if absolute is not None:
        image_size = [4 * side for side in absolute.shape[2:]] if absolute.ndim == 4 else 4 * math.isqrt(absolute.shape[1])
    return found | {
        "num_heads": [table.shape[1] for table in tables],
        "window_size": windows[0],
        "image_size": image_size,
        "absolute_pos_embed": absolute is not None,
    }


def _resize(name: str, value: Tensor, shape: Sequence[int]) -> Tensor | None:
    if name == "absolute_pos_embed":
        return _resize_absolute(value, shape)
    if not name.endswith("relative_position_bias_table") or value.ndim != 2 or value.shape[1] != shape[1]:
        return None
    before, after = square_window_of(len(value)), square_window_of(shape[0])
    return resize_position_table(value, (before, before), (after, after)) if before and after else None


def _resize_absolute(table: Tensor, shape: Sequence[int]) -> Tensor | None:
    """1, N, C of a square grid, or 1, C, H, W as the dense backbones store it -> 1, N, C of the same or of a square grid."""
    if table.ndim == 3:
        side = math.isqrt(table.shape[1])
        table = table.transpose(1, 2).reshape(1, -1, side, table.shape[1] // side)
    side = math.isqrt(shape[1])
    if table.shape[2] * table.shape[3] != shape[1]:
        if table.shape[2] != table.shape[3] or side * side != shape[1]:
            return None
        table = F.interpolate(table, (side, side), mode="bicubic")
    return table.flatten(2).transpose(1, 2)


LAYOUT = PublishedLayout(
    build=Swin,
    infer=_infer,
    keys=("patch_embed.proj.weight", "layers.0.blocks.0.attn.relative_position_bias_table", "layers.0.downsample.reduction.weight"),
    others=(TIMM,),
    ignored=TABLES,
    fresh=("norm[0-3].*",),
    head="head.",
    norm="norm.",
    stem="patch_embed.proj.weight",
    resize=_resize,
)


register_variants(
    Swin,
    {
        "swin_tiny": variant(224, "28.3 M parameters, 4.5 G MACs", top1(in1k_224=81.2, in22k_224=80.9)),
        "swin_tiny_c24": variant(
            256, "28.3 M parameters, 5.9 G MACs; heads of 24 channels, window 8", num_heads=(4, 8, 16, 32), window_size=8
        ),
        "swin_small": variant(224, "49.6 M parameters, 8.7 G MACs", top1(in1k_224=83.2, in22k_224=83.2), depths=(2, 2, 18, 2)),
        "swin_base": variant(224, "87.8 M parameters, 15.4 G MACs", top1(in1k_224=83.5, in22k_224=85.2), **BASE),
        "swin_base_384": variant(
            384, "87.9 M parameters, 47.1 G MACs; window 12", top1(in1k_384=84.5, in22k_384=86.4), **BASE, window_size=12
        ),
        "swin_large": variant(224, "196.5 M parameters, 34.5 G MACs", top1(in22k_224=86.3), **LARGE),
        "swin_large_384": variant(384, "196.7 M parameters, 103.9 G MACs; window 12", top1(in22k_384=87.3), **LARGE, window_size=12),
    },
    system="swin",
    task="classification",
    paper="Swin Transformer: Hierarchical Vision Transformer using Shifted Windows, Liu et al., ICCV 2021, arXiv 2103.14030",
    licence=LICENCE,
    layout=LAYOUT,
)
