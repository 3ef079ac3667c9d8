"""Swin Transformer V2: norms after the branches, cosine attention, continuous position bias (Liu et al., CVPR 2022)."""

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
    Stage,
    WindowBackbone,
    infer_stages,
    merge_patches,
    top1,
    variant,
)
from vsuite.core.nn import DropPath, Mlp, attend, gather_position_bias, memoise
from vsuite.core.registry import PublishedLayout, register_variants


@memoise
def log_spaced_offsets(window: tuple[int, int], pretrained: tuple[int, int], device: torch.device) -> Tensor:
    """(2h - 1)(2w - 1), 2: all offsets in a window (rows, columns), -8 to 8 over the pre-training window, on a logarithmic scale."""
    grids = [
        torch.arange(1 - side, side, device=device, dtype=torch.float32) * 8 / max(trained - 1, 1)
        for side, trained in zip(window, pretrained, strict=True)
    ]
    offsets = torch.stack(torch.meshgrid(*grids, indexing="ij"), -1).flatten(0, 1)
    return offsets.sign() * torch.log2(offsets.abs() + 1) / math.log2(8)


class CosineWindowAttention(ShiftedWindowAttention):
    """Cosine attention with a learnt temperature a head; a small network gives the bias of each offset.

    Args:
        dim: channels.
        num_heads: divides `dim`.
        window: h, w.
        pretrained_window: side of the window that the bias network was trained with; 0 is this window.
    """

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int], pretrained_window: int = 0) -> None:
        super().__init__(window)
        self.num_heads = num_heads
        self.pretrained_window = (pretrained_window, pretrained_window) if pretrained_window else window
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10)))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 512), nn.ReLU(inplace=True), nn.Linear(512, num_heads, bias=False))
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        self.register_buffer("scale", None, persistent=False)  # once folded

    def position_bias(self) -> Tensor:
        offsets = log_spaced_offsets(self.window, self.pretrained_window, self.logit_scale.device)
        table = self.cpb_mlp(offsets.to(self.logit_scale.dtype))
        return 16 * gather_position_bias(table, self.window).sigmoid()

    def temperature(self) -> Tensor:
        """heads, 1, 1: factor on the cosines, at most 100."""
        return self.logit_scale.clamp(max=math.log(100)).exp() if self.scale is None else self.scale

    def attend(self, windows: Tensor, bias: Tensor) -> Tensor:
        bias_of_qkv = self._biases() if self.qkv.bias is None else self.qkv.bias
        projected = F.linear(windows, self.qkv.weight, bias_of_qkv).unflatten(-1, (3, self.num_heads, -1))  # B, N, 3, heads, C / heads
        value, directed = projected[:, :, 2], projected[:, :, :2]
        temperature = self.temperature()[:, 0]
        precise = torch.promote_types(directed.dtype, torch.float32)  # a padded token's key is zero, and 1e-12 would be zero in fp16
        lengths = torch.linalg.vector_norm(directed, dim=-1, keepdim=True, dtype=precise).clamp_min(1e-12)
        directed = directed * (torch.stack([temperature, torch.ones_like(temperature)]) / lengths)
        query, key = directed.to(value.dtype).unbind(2)
        return self.proj(attend(query.flatten(2), key.flatten(2), value.flatten(2), self.num_heads, scale=1.0, bias=bias))

    def _biases(self) -> Tensor:
        return torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])

    @torch.no_grad()
    def fold(self) -> None:
        super().fold()
        self.scale = self.temperature()
        self.qkv.bias = nn.Parameter(self._biases(), requires_grad=False)


class Block(nn.Module):
    """Window attention and perceptron, each followed by a layer norm, with residuals. B, H, W, C -> the same."""

    def __init__(self, dim: int, num_heads: int, window: tuple[int, int], pretrained_window: int = 0, drop_path: float = 0.0) -> None:
        super().__init__()
        self.attn = CosineWindowAttention(dim, num_heads, window, pretrained_window)
        self.norm1 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.norm2 = nn.LayerNorm(dim)
        self.drop_path = DropPath(drop_path)
        for norm in (self.norm1, self.norm2):  # a block starts as the identity
            nn.init.zeros_(norm.weight)

    def forward(self, x: Tensor, shift: bool) -> Tensor:
        x = x + self.drop_path(self.norm1(self.attn(x, shift)))
        return x + self.drop_path(self.norm2(self.mlp(x)))


class PatchMerging(nn.Module):
    """2 x 2 tokens -> one of twice the width: B, H, W, C -> B, ceil(H / 2), ceil(W / 2), 2C."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.reduction(merge_patches(x)))


class SwinV2(WindowBackbone):
    """Swin Transformer V2.

    The published code knows one size a model only. Any other size follows the padding of the dense backbones of Swin, with
    the windows of `image_size`.

    Args:
        pretrained_window_sizes: for each stage the side of the window that the weights were pre-trained with; 0 is its own.
        others: see `Swin`.
    """

    no_decay = frozenset({"cpb_mlp.0.weight", "cpb_mlp.2.weight", "logit_scale"})

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 8,
        pretrained_window_sizes: Sequence[int] = (0, 0, 0, 0),
        drop_path_rate: float = 0.0,
        image_size: int | Sequence[int] | None = None,
        stage_norms: bool = False,
    ) -> None:
        if len(pretrained_window_sizes) != len(depths) or min(pretrained_window_sizes) < 0:
            raise InputError(f"pretrained_window_sizes needs a number from 0 up for each stage; got {list(pretrained_window_sizes)}")
        super().__init__(
            lambda stage, dim, window, rate: Block(dim, num_heads[stage], window, pretrained_window_sizes[stage], rate),
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


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The windows stand in the authors' offset tables alone; without these they are assumed."""
    found = infer_stages(state)
    stages = range(len(found["depths"]))
    found["num_heads"] = [len(state[f"layers.{i}.blocks.0.attn.logit_scale"]) for i in stages]
    windows, pretrained = _windows(state, len(stages))
    if not windows:
        return found
    return found | {
        "window_size": windows[0],
        "image_size": windows[-1] << (len(windows) + 1),  # the published classifiers end in a map of one window
        "pretrained_window_sizes": [0 if p == w else p for p, w in zip(pretrained, windows, strict=True)],
    }


def _windows(state: Mapping[str, Tensor], stages: int) -> tuple[list[int], list[int]]:
    """The windows of the stages by the authors' offset tables, and those that the bias networks were trained with; empty without tables.

    A window of one token does not tell: 0.
    """
    tables = [state[name] for i in range(stages) if (name := f"layers.{i}.blocks.0.attn.relative_coords_table") in state]
    if len(tables) < stages:
        return [], []
    windows = [(table.shape[1] + 1) // 2 for table in tables]
    largest = [float(table.max()) for table in tables]  # log2(1 + 8 (window - 1) / (pre-trained - 1)) / log2(8)
    return windows, [1 + round(8 * (w - 1) / (8**most - 1)) if most > 0 else 0 for w, most in zip(windows, largest, strict=True)]


def _conflict(model: nn.Module, state: Mapping[str, Tensor]) -> str:
    """Another window is fine: that is what the bias network is for. But it must know which window it was trained with."""
    blocks = [stage.blocks[0] for stage in model.layers if isinstance(stage, Stage)] if isinstance(model, SwinV2) else []
    ours = [block.attn.pretrained_window[0] for block in blocks if isinstance(block, Block)]
    windows, theirs = _windows(state, len(ours))
    if not windows or all(their in (0, our) for their, our in zip(theirs, ours, strict=True)):
        return ""
    return (
        f"its biases were trained for windows of {theirs}, the model takes them for those of {ours}; "
        f"build it with pretrained_window_sizes={theirs}, or with window_size={windows[0]} and the image size of the file"
    )


LAYOUT = PublishedLayout(
    build=SwinV2,
    infer=_infer,
    keys=("patch_embed.proj.weight", "layers.0.blocks.0.attn.cpb_mlp.0.weight", "layers.0.downsample.reduction.weight"),
    others=(TIMM,),
    assumed={"window_size": 8, "pretrained_window_sizes": (0, 0, 0, 0), "image_size": 256},  # where the tables are missing
    ignored=TABLES,
    fresh=("norm[0-3].*",),
    head="head.",
    norm="norm.",
    stem="patch_embed.proj.weight",
    conflict=_conflict,
)

SMALL = {"depths": (2, 2, 18, 2)}
AT_12 = {"pretrained_window_sizes": (12, 12, 12, 6)}
register_variants(
    SwinV2,
    {
        "swin_v2_tiny": variant(256, "28.3 M parameters, 5.9 G MACs", top1(in1k_256=81.8)),
        "swin_v2_tiny_window16": variant(256, "28.3 M parameters, 6.7 G MACs", top1(in1k_256=82.8), window_size=16),
        "swin_v2_small": variant(256, "49.7 M parameters, 11.5 G MACs", top1(in1k_256=83.7), **SMALL),
        "swin_v2_small_window16": variant(256, "49.7 M parameters", top1(in1k_256=84.1), **SMALL, window_size=16),
        "swin_v2_base": variant(256, "87.9 M parameters, 20.3 G MACs", top1(in1k_256=84.2), **BASE),
        "swin_v2_base_window16": variant(256, "87.9 M parameters", top1(in1k_256=84.6), **BASE, window_size=16),
        "swin_v2_base_window12to16_192to256": variant(
            256,
            "87.9 M parameters, 22.0 G MACs; pre-trained at 192 pixels",
            top1(in22k_256=86.2),
            **BASE,
            **AT_12,
            window_size=16,
        ),
        "swin_v2_base_window12to24_192to384": variant(
            384, "87.9 M parameters; pre-trained at 192 pixels", top1(in22k_384=87.1), **BASE, **AT_12, window_size=24
        ),
        "swin_v2_large_window12to16_192to256": variant(
            256, "196.7 M parameters; pre-trained at 192 pixels", top1(in22k_256=86.9), **LARGE, **AT_12, window_size=16
        ),
        "swin_v2_large_window12to24_192to384": variant(
            384, "196.7 M parameters, 116.0 G MACs; pre-trained at 192 pixels", top1(in22k_384=87.6), **LARGE, **AT_12, window_size=24
        ),
    },
    system="swin_v2",
    task="classification",
    paper="Swin Transformer V2: Scaling Up Capacity and Resolution, Liu et al., CVPR 2022, arXiv 2111.09883",
    licence=LICENCE,
    layout=LAYOUT,
)
