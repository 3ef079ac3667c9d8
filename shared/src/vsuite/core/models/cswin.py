"""CSWin Transformer: half of the heads attend within vertical stripes, half within horizontal ones (Dong et al., CVPR 2022)."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import DropPath, FeatureInfo, ImageBackbone, LayerNorm2d, Mlp, SizeRule, attend, drop_path_rates
from vsuite.core.nn.free_sizes import crop, reshape
from vsuite.core.registry import PublishedLayout, PublishedResult, Variant, register_variants


class LePEAttention(nn.Module):
    """Attention within stripes, plus a depthwise convolution of the values within them (locally enhanced position encoding).

    Where the stripes do not divide the map it is padded on both sides with zeros in q, k and v, which take part as keys.

    Args:
        dim: channels of each of q, k and v.
        num_heads: divides `dim`.
        stripe_width: in tokens; None makes the whole map one stripe.
        vertical: stripes run from top to bottom, rather than from left to right.
    """

    def __init__(self, dim: int, num_heads: int, stripe_width: int | None, *, vertical: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.stripe_width = stripe_width
        self.vertical = vertical
        self.get_v = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def forward(self, qkv: Tensor) -> Tensor:
        """B, H, W, 3, dim -> B, H, W, dim."""
        if self.vertical:
            return self._attend(qkv.transpose(1, 2), self.get_v.weight.mT).transpose(1, 2)
        return self._attend(qkv, self.get_v.weight)

    def _attend(self, qkv: Tensor, kernel: Tensor) -> Tensor:
        """Horizontal stripes: B, H, W, 3, dim -> B, H, W, dim."""
        batch, height, width, _, dim = qkv.shape
        count, w = _stripes(height, self.stripe_width)
        padding = count * w - height
        # A graph pads always, so that its sizes stay free; but where no size needs it.
        padded = self.stripe_width not in (None, 1) and (torch.compiler.is_compiling() or padding > 0)
        if padded:
            qkv = F.pad(qkv, (0, 0, 0, 0, 0, 0, padding // 2, padding - padding // 2))
        # A view if horizontal or of width 1; other vertical stripes are copied here, once.
        q, k, v = reshape(qkv, (batch * count, w * width, 3, dim)).unbind(2)
        kernel = kernel[:, :, 1:2] if self.stripe_width == 1 else kernel  # the other rows would meet nothing but padding
        local = reshape(v, (batch * count, w, width, dim)).permute(0, 3, 1, 2)
        local = F.conv2d(local, kernel, self.get_v.bias, padding=(kernel.shape[2] // 2, 1), groups=dim).permute(0, 2, 3, 1)
        out = attend(q, k, v, self.num_heads) + reshape(local, (batch * count, w * width, dim))
        out = reshape(out, (batch, count * w, width, dim))
        return crop(out, 1, padding // 2, height) if padded else out


def _stripes(side: int, width: int | None) -> tuple[int, int]:
    """How many stripes there are and how wide they are."""
    return (1, side) if width is None else ((side + width - 1) // width, width)


class Block(nn.Module):
    """Cross-shaped window attention and perceptron, each after a layer norm and with a residual. B, H, W, C -> the same.

    Args:
        stripe_width: in tokens. The first half of the channels and heads attends in vertical stripes, the second in
            horizontal ones; None lets all of them attend over the whole map.
    """

    def __init__(self, dim: int, num_heads: int, stripe_width: int | None, drop_path: float = 0.0) -> None:
        super().__init__()
        directions = [False] if stripe_width is None else [True, False]  # vertical first
        parts = len(directions)
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.attns = nn.ModuleList(
            LePEAttention(dim // parts, num_heads // parts, stripe_width, vertical=vertical) for vertical in directions
        )
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.qkv(self.norm1(x)).unflatten(-1, (3, len(self.attns), -1)).unbind(-2)  # B, H, W, 3, C / parts each
        mixed = torch.cat([attention(part) for attention, part in zip(self.attns, parts, strict=True)], -1)
        x = x + self.drop_path(self.proj(mixed))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CSWin(ImageBackbone):
    """Four stages at strides 4, 8, 16, 32; sides are free from 3 pixels up. The last stage attends over the whole map.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        embed_dim: width of the first stage; doubles from stage to stage.
        depths, num_heads: blocks, and heads in each of them, of each stage. Heads are even in number but in the last stage.
        stripe_widths: in tokens, of the first three stages.
        drop_path_rate: of the last block; rises linearly from 0.
        stage_norms: build the norms `norm1` to `norm4` of the published dense backbone, in place of the classifier's `norm`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        embed_dim: int = 64,
        depths: Sequence[int] = (1, 2, 21, 1),
        num_heads: Sequence[int] = (2, 4, 8, 16),
        stripe_widths: Sequence[int] = (1, 2, 7),
        drop_path_rate: float = 0.0,
        stage_norms: bool = False,
    ) -> None:
        super().__init__(in_channels, num_classes)
        dims = [embed_dim << i for i in range(4)]
        _check(dims, depths, num_heads, stripe_widths)
        self.feature_info = tuple(FeatureInfo(f"stage{i}", dim, 2 << i) for i, dim in enumerate(dims, 1))
        self.size_rule = SizeRule(minimum=3)
        self.num_features = dims[-1]
        self.depths = tuple(depths)
        # The authors' sequence reshapes at its index 1.
        self.stage1_conv_embed = _named({"0": nn.Conv2d(in_channels, embed_dim, 7, 4, 2), "2": LayerNorm2d(embed_dim)})
        stages = zip(dims, num_heads, [*stripe_widths, None], drop_path_rates(drop_path_rate, depths), strict=True)
        for i, (dim, heads, stripe_width, rates) in enumerate(stages, 1):
            self.add_module(f"stage{i}", nn.ModuleList(Block(dim, heads, stripe_width, rate) for rate in rates))
        for i, dim in enumerate(dims[:-1], 1):
            self.add_module(f"merge{i}", _named({"conv": nn.Conv2d(dim, 2 * dim, 3, 2, 1), "norm": LayerNorm2d(2 * dim)}))
        self.norm: nn.Module | None = None
        if stage_norms:
            for i, dim in enumerate(dims, 1):
                self.add_module(f"norm{i}", LayerNorm2d(dim))
        else:
            self.norm = LayerNorm2d(self.num_features)
        self.head = self.make_head(num_classes)
        self.apply(_initialise)
        # The kernels too are channels-last, or each call would copy them into this order.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        for downsample, blocks in self.stages():
            x = downsample(x).permute(0, 2, 3, 1)  # B, H, W, C
            for block in blocks:
                x = self.run(block, x)
            x = x.permute(0, 3, 1, 2)
            yield x

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        norm = self.stage_norm(3) if self.norm is None else self.norm
        pooled = norm(feature).mean((2, 3))
        return pooled if pre_logits else self.head(pooled)

    def stage_norm(self, stage: int) -> nn.Module:
        """The published norms count from 1."""
        return super().stage_norm(stage + 1)

    def parts(self) -> list[list[nn.Module]]:
        (stem, first), *later = self.stages()
        return [[stem], [first], *map(list, later)]

    def layer_id(self, name: str) -> int:
        """0 the stem, then one a block (a merge goes with the block after it), then the head and the norms of the outputs."""
        if name.startswith("stage1_conv_embed."):
            return 0
        found = re.match(r"(stage|merge)(\d)\.(\w+)", name)
        if not found:
            return 1 + sum(self.depths)
        stage, block = int(found[2]), found[3]
        return 1 + (sum(self.depths[:stage]) if found[1] == "merge" else sum(self.depths[: stage - 1]) + int(block))

    def stages(self) -> list[tuple[nn.Module, nn.ModuleList]]:
        """What each stage begins with, and its blocks."""
        downsamples = [self.stage1_conv_embed, *(getattr(self, f"merge{i}") for i in (1, 2, 3))]
        return [(downsample, getattr(self, f"stage{i}")) for i, downsample in enumerate(downsamples, 1)]


def _named(modules: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _check(dims: Sequence[int], depths: Sequence[int], num_heads: Sequence[int], stripe_widths: Sequence[int]) -> None:
    if len(depths) != 4 or len(num_heads) != 4 or min(depths) < 1:
        raise InputError(f"CSWin has 4 stages of 1 block or more; got depths {list(depths)} and num_heads {list(num_heads)}")
    if len(stripe_widths) != 3 or min(stripe_widths) < 1:
        raise InputError(f"stripe_widths are 3, for all stages but the last, and 1 or more; got {list(stripe_widths)}")
    for dim, heads, parts in zip(dims, num_heads, (2, 2, 2, 1), strict=True):
        if heads < 1 or heads % parts or dim % heads:
            raise InputError(f"num_heads must divide the widths {dims} and be even but in the last stage; got {list(num_heads)}")


def _initialise(module: nn.Module) -> None:
    """Convolutions keep PyTorch's own initialisation, as published."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)


# Head counts leave no trace in a checkpoint; each published width has but one set of them.
NUM_HEADS = {64: (2, 4, 8, 16), 96: (4, 8, 16, 32), 144: (6, 12, 24, 24)}


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    embed_dim, in_channels = state["stage1_conv_embed.0.weight"].shape[:2]
    return {
        "in_channels": int(in_channels),
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "embed_dim": int(embed_dim),
        "depths": [sum(bool(re.fullmatch(rf"stage{i}\.\d+\.qkv\.weight", name)) for name in state) for i in (1, 2, 3, 4)],
        "num_heads": NUM_HEADS.get(int(embed_dim), NUM_HEADS[64]),
        "stage_norms": "norm1.weight" in state,
    }


LAYOUT = PublishedLayout(
    build=CSWin,
    infer=_infer,
    keys=("stage1_conv_embed.0.weight", "stage1.0.attns.0.get_v.weight", "merge1.conv.weight", "stage4.0.qkv.weight"),
    assumed={"stripe_widths": (1, 2, 7)},  # the models for 384 pixels have (1, 2, 12)
    fresh=("norm[1-4].*",),
    head="head.",
    norm="norm.",
    stem="stage1_conv_embed.0.weight",
)


def _top1(value: float, dataset: str = "ImageNet-1K") -> PublishedResult:
    return PublishedResult(dataset, "top-1", value, "%")


def _dense(mask_rcnn: Sequence[float], cascade: Sequence[float], upernet: Sequence[float], semantic_fpn: float) -> list[PublishedResult]:
    """Box and mask AP of both detectors; single- and multi-scale mIoU of UPerNet; mIoU of Semantic FPN."""
    return [
        *(PublishedResult("COCO val, Mask R-CNN 3x", f"{kind} AP", value) for kind, value in zip(("box", "mask"), mask_rcnn, strict=True)),
        *(PublishedResult("COCO val, Cascade 3x", f"{kind} AP", value) for kind, value in zip(("box", "mask"), cascade, strict=True)),
        PublishedResult("ADE20K, UPerNet", "mIoU", upernet[0], "%"),
        PublishedResult("ADE20K, UPerNet", "multi-scale mIoU", upernet[1], "%"),
        PublishedResult("ADE20K, Semantic FPN", "mIoU", semantic_fpn, "%"),
    ]


SMALL = {"depths": (2, 4, 32, 2)}
BASE = {**SMALL, "embed_dim": 96, "num_heads": NUM_HEADS[96]}
LARGE = {**SMALL, "embed_dim": 144, "num_heads": NUM_HEADS[144]}
AT_384 = {"stripe_widths": (1, 2, 12)}
PRETRAINED = "ImageNet-1K, pre-trained on 22K"

register_variants(
    CSWin,
    {
        "cswin_tiny": Variant({}, "22.3 M parameters, 4.3 G MACs", (_top1(82.8), *_dense((49.0, 43.6), (52.5, 45.3), (49.3, 50.7), 48.2))),
        "cswin_small": Variant(
            SMALL, "34.6 M parameters, 6.8 G MACs", (_top1(83.6), *_dense((50.0, 44.5), (53.7, 46.4), (50.4, 51.5), 49.2))
        ),
        "cswin_base": Variant(
            BASE, "77.4 M parameters, 15.0 G MACs", (_top1(84.2), *_dense((50.8, 44.9), (53.9, 46.4), (51.1, 52.2), 49.9))
        ),
        "cswin_large": Variant(LARGE, "173.3 M parameters, 33.1 G MACs", (_top1(86.5, PRETRAINED),)),
        "cswin_base_384": Variant({**BASE, **AT_384}, "77.4 M parameters, 47.0 G MACs", (_top1(85.5),), (3, 384, 384)),
        "cswin_large_384": Variant({**LARGE, **AT_384}, "173.3 M parameters, 101.9 G MACs", (_top1(87.5, PRETRAINED),), (3, 384, 384)),
    },
    system="cswin",
    task="classification",
    paper="CSWin Transformer: A General Vision Transformer Backbone with Cross-Shaped Windows, Dong et al., CVPR 2022, arXiv 2107.00652",
    licence="MIT (official code)",
    layout=LAYOUT,
)
