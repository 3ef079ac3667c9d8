"""ConvNeXt: a convolutional network with the macro-design of Swin (Liu et al., CVPR 2022), hierarchical and isotropic."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.core.nn import DropPath, FeatureInfo, ImageBackbone, LayerNorm2d, SizeRule, drop_path_rates, perceptron
from vsuite.core.registry import OtherNames, PublishedLayout, PublishedResult, Variant, register_variants


class Block(nn.Module):
    """Depthwise 7x7 convolution, layer norm, inverted bottleneck with GELU, layer scale, residual. B, C, H, W -> the same."""

    def __init__(self, dim: int, drop_path: float = 0.0, layer_scale: float = 1e-6) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, 7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1 = nn.Linear(dim, 4 * dim)
        self.pwconv2 = nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), layer_scale)) if layer_scale > 0 else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))  # B, H, W, C: a view, as the map is channels-last in memory
        y = perceptron(y, self.pwconv1, self.pwconv2)
        if self.gamma is not None:
            y = y * self.gamma
        return x + self.drop_path(y.permute(0, 3, 1, 2))

    @torch.no_grad()
    def fold(self) -> None:
        if self.gamma is not None and isinstance(self.pwconv2, nn.Linear):  # not one that makes its weight for each image
            self.pwconv2.weight.mul_(self.gamma[:, None])
            self.pwconv2.bias.mul_(self.gamma)
            self.gamma = None


class StagedConvNet(ImageBackbone):
    """The frame of ConvNeXt, and of systems that only replace its blocks: four stages at strides 4, 8, 16, 32.

    Sides are free from 32 pixels up; rows and columns beyond a multiple are not seen.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        embed_dims: width of each stage.
        stages: the blocks of each stage; maps B, C, H, W, channels-last in memory.
        head_init_scale: factor on the classifier's initial weights (0.001 for fine-tuning, as published).
        stage_norms: build the norms `norm0` to `norm3` of the published dense backbones, in place of the classifier's `norm`.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        embed_dims: Sequence[int],
        stages: Sequence[Sequence[nn.Module]],
        head_init_scale: float,
        stage_norms: bool,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.feature_info = tuple(FeatureInfo(f"stages.{i}", dim, 4 << i) for i, dim in enumerate(embed_dims))
        self.size_rule = SizeRule(minimum=32)
        self.num_features = embed_dims[-1]
        stem = nn.Sequential(nn.Conv2d(in_channels, embed_dims[0], 4, 4), LayerNorm2d(embed_dims[0], eps=1e-6))
        between = [
            nn.Sequential(LayerNorm2d(before, eps=1e-6), nn.Conv2d(before, after, 2, 2)) for before, after in itertools.pairwise(embed_dims)
        ]
        self.downsample_layers = nn.ModuleList([stem, *between])
        self.stages = nn.ModuleList(nn.Sequential(*blocks) for blocks in stages)
        self.norm: nn.Module | None = None
        if stage_norms:
            for i, dim in enumerate(embed_dims):
                self.add_module(f"norm{i}", LayerNorm2d(dim, eps=1e-6))
        else:
            self.norm = nn.LayerNorm(embed_dims[-1], eps=1e-6)
        self.head = self.make_head(num_classes)
        _initialise(self, head_init_scale)

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        x = x.contiguous(memory_format=torch.channels_last)
        for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
            x = downsample(x)
            for block in stage.children():
                x = self.run(block, x)
            yield x

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        pooled = self.stage_norm(3)(feature).mean((2, 3)) if self.norm is None else self.norm(feature.mean((2, 3)))
        return pooled if pre_logits else self.head(pooled)

    def parts(self) -> list[list[nn.Module]]:
        stages = zip(self.downsample_layers[1:], self.stages[1:], strict=True)
        return [[self.downsample_layers[0]], [self.stages[0]], *map(list, stages)]


class ConvNeXt(StagedConvNet):
    """Four stages at strides 4, 8, 16, 32. Sides are free from 32 pixels up; rows and columns beyond a multiple are not seen.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        depths, embed_dims: blocks and width of each stage.
        drop_path_rate: of the last block; rises linearly from 0.
        layer_scale: initial factor on each residual branch; 0 builds none.
        head_init_scale, stage_norms: see `StagedConvNet`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 3, 9, 3),
        embed_dims: Sequence[int] = (96, 192, 384, 768),
        drop_path_rate: float = 0.0,
        layer_scale: float = 1e-6,
        head_init_scale: float = 1.0,
        stage_norms: bool = False,
    ) -> None:
        if len(depths) != 4 or len(embed_dims) != 4:
            raise InputError(f"ConvNeXt has 4 stages; got depths {list(depths)} and embed_dims {list(embed_dims)}")
        rates = drop_path_rates(drop_path_rate, depths)
        stages = [[Block(dim, rate, layer_scale) for rate in stage] for dim, stage in zip(embed_dims, rates, strict=True)]
        super().__init__(in_channels, num_classes, embed_dims, stages, head_init_scale, stage_norms)

    def layer_id(self, name: str) -> int:
        """The published table, made for 27 blocks in the third stage: 0 to 13."""
        return layer_group(name, blocks_a_group=3)


def layer_group(name: str, blocks_a_group: int) -> int:
    """0 the stem, 1 and 2 the first stages, 3 to 11 the third one in groups of blocks, 12 the last stage, 13 the head."""
    found = re.match(r"(downsample_layers|stages)\.(\d)\.(\d+)", name)
    if not found:
        return 13
    part, stage, block = found[1], int(found[2]), int(found[3])
    if part == "stages":
        return min(3 + block // blocks_a_group, 11) if stage == 2 else (1, 2, 3, 12)[stage]
    return (0, 2, 3, 12)[stage]


class ConvNeXtIsotropic(ImageBackbone):
    """ConvNeXt blocks of one width at stride 16, without stages: sides are free from 16 pixels up.

    Args:
        depth, embed_dim: blocks and their width.
        layer_scale: 0, as most were trained, builds none.
        in_channels, num_classes, drop_path_rate, head_init_scale: see `ConvNeXt`.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        depth: int = 18,
        embed_dim: int = 384,
        drop_path_rate: float = 0.0,
        layer_scale: float = 0.0,
        head_init_scale: float = 1.0,
    ) -> None:
        super().__init__(in_channels, num_classes)
        self.feature_info = (FeatureInfo("blocks", embed_dim, 16),)
        self.size_rule = SizeRule(minimum=16)
        self.num_features = embed_dim
        self.stem = nn.Conv2d(in_channels, embed_dim, 16, 16)
        (rates,) = drop_path_rates(drop_path_rate, [depth])
        self.blocks = nn.Sequential(*(Block(embed_dim, rate, layer_scale) for rate in rates))
        self.norm = nn.LayerNorm(embed_dim, eps=1e-6)
        self.head = self.make_head(num_classes)
        _initialise(self, head_init_scale)

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        x = self.stem(x.contiguous(memory_format=torch.channels_last))
        for block in self.blocks:
            x = self.run(block, x)
        yield x

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        pooled = self.norm(feature.mean((2, 3)))
        return pooled if pre_logits else self.head(pooled)

    def parts(self) -> list[list[nn.Module]]:
        return [[self.stem], [self.blocks]]

    def layer_id(self, name: str) -> int:
        if name.startswith("stem."):
            return 0
        return 1 + int(name.split(".")[1]) if name.startswith("blocks.") else 1 + len(self.blocks)


def _initialise(model: ImageBackbone, head_init_scale: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    head = getattr(model, model.head_name)
    if isinstance(head, nn.Linear):
        head.weight.data.mul_(head_init_scale)


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    dims = [int(state[f"stages.{i}.0.norm.weight"].shape[0]) for i in range(4)]
    return {
        "in_channels": int(state["downsample_layers.0.0.weight"].shape[1]),
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "depths": [sum(bool(re.fullmatch(rf"stages\.{i}\.\d+\.norm\.weight", name)) for name in state) for i in range(4)],
        "embed_dims": dims,
        "layer_scale": 1e-6 if "stages.0.0.gamma" in state else 0.0,
        "stage_norms": "norm0.weight" in state,
    }


def _infer_isotropic(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "in_channels": int(state["stem.weight"].shape[1]),
        "num_classes": len(state["head.weight"]) if "head.weight" in state else 0,
        "depth": sum(bool(re.fullmatch(r"blocks\.\d+\.norm\.weight", name)) for name in state),
        "embed_dim": int(state["stem.weight"].shape[0]),
        "layer_scale": 1e-6 if "blocks.0.gamma" in state else 0.0,
    }


def _from_timm(name: str) -> str:
    name = re.sub(r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1.", re.sub(r"^stem\.", "downsample_layers.0.", name))
    name = re.sub(r"^stages\.(\d)\.blocks\.", r"stages.\1.", re.sub(r"^head\.fc\.", "head.", re.sub(r"^head\.norm\.", "norm.", name)))
    return name.replace(".conv_dw.", ".dwconv.").replace(".mlp.fc", ".pwconv")


LAYOUT = PublishedLayout(
    build=ConvNeXt,
    infer=_infer,
    keys=("downsample_layers.0.0.weight", "downsample_layers.3.1.weight", "stages.0.0.dwconv.weight", "stages.0.0.pwconv1.weight"),
    others=(OtherNames("timm", ("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"), _from_timm),),
    fresh=("norm[0-3].*",),
    head="head.",
    norm="norm.",
    stem="downsample_layers.0.0.weight",
)
ISOTROPIC_LAYOUT = PublishedLayout(
    build=ConvNeXtIsotropic,
    infer=_infer_isotropic,
    keys=("stem.weight", "blocks.0.dwconv.weight", "blocks.0.pwconv1.weight"),
    head="head.",
    norm="norm.",
    stem="stem.weight",
)

PAPER = "A ConvNet for the 2020s, Liu et al., CVPR 2022, arXiv 2201.03545"
LICENCE = "MIT (official code and weights)"


def _top1(**values: float) -> tuple[PublishedResult, ...]:
    """in1k_224=82.1: trained on ImageNet-1K, tested at 224 pixels; in22k_: pre-trained on ImageNet-22K."""
    names = {"in1k": "ImageNet-1K", "in22k": "ImageNet-1K, pre-trained on 22K"}
    return tuple(
        PublishedResult(f"{names[key.split('_')[0]]}, {key.split('_')[1]} pixels", "top-1", value, "%") for key, value in values.items()
    )


register_variants(
    ConvNeXt,
    {
        "convnext_tiny": Variant({}, "28.6 M parameters, 4.5 G MACs", _top1(in1k_224=82.1, in22k_224=82.9, in22k_384=84.1)),
        "convnext_small": Variant(
            {"depths": (3, 3, 27, 3)}, "50.2 M parameters, 8.7 G MACs", _top1(in1k_224=83.1, in22k_224=84.6, in22k_384=85.8)
        ),
        "convnext_base": Variant(
            {"depths": (3, 3, 27, 3), "embed_dims": (128, 256, 512, 1024)},
            "88.6 M parameters, 15.4 G MACs",
            _top1(in1k_224=83.8, in1k_384=85.1, in22k_224=85.8, in22k_384=86.8),
        ),
        "convnext_large": Variant(
            {"depths": (3, 3, 27, 3), "embed_dims": (192, 384, 768, 1536)},
            "197.8 M parameters, 34.4 G MACs",
            _top1(in1k_224=84.3, in1k_384=85.5, in22k_224=86.6, in22k_384=87.5),
        ),
        "convnext_xlarge": Variant(
            {"depths": (3, 3, 27, 3), "embed_dims": (256, 512, 1024, 2048)},
            "350.2 M parameters, 60.9 G MACs; published with ImageNet-22K pre-training only",
            _top1(in22k_224=87.0, in22k_384=87.8),
        ),
    },
    system="convnext",
    task="classification",
    paper=PAPER,
    licence=LICENCE,
    layout=LAYOUT,
)
register_variants(
    ConvNeXtIsotropic,
    {
        "convnext_isotropic_small": Variant({}, "22.3 M parameters, 4.3 G MACs", _top1(in1k_224=78.7)),
        "convnext_isotropic_base": Variant({"embed_dim": 768}, "87.1 M parameters, 16.9 G MACs", _top1(in1k_224=82.0)),
        "convnext_isotropic_large": Variant({"depth": 36, "embed_dim": 1024}, "305.9 M parameters, 59.7 G MACs", _top1(in1k_224=82.6)),
    },
    system="convnext_isotropic",
    task="classification",
    paper=PAPER,
    licence=LICENCE,
    layout=ISOTROPIC_LAYOUT,
)
