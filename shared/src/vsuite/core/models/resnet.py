"""ResNet: residual networks of basic and bottleneck blocks (He et al., CVPR 2016), with the stride in the 3x3 convolution."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import FeatureInfo, ImageBackbone, SizeRule, fold_batch_norm
from vsuite.core.registry import OtherNames, PublishedLayout, PublishedResult, Variant, register_variants


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut. B, in_channels, H, W -> B, channels, H / stride, W / stride."""

    expansion = 1

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _shortcut(in_channels, channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = self.bn2(self.conv2(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)

    def fold(self) -> None:
        _fold_norms(self)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolution, and a shortcut. B, in_channels, H, W -> B, 4 channels, H / stride, W / stride."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, 4 * channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * channels)
        self.downsample = _shortcut(in_channels, 4 * channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y += x if self.downsample is None else self.downsample(x)
        return F.relu(y, inplace=True)

    def fold(self) -> None:
        _fold_norms(self)


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and in_channels == out_channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels))


def _fold_norms(owner: nn.Module) -> None:
    """Folds each `bnN` into `convN`, and that of the shortcut; a convolution of another kind keeps its norm."""
    pairs = [(owner, f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
    shortcut = getattr(owner, "downsample", None)
    if shortcut is not None:
        pairs.append((shortcut, "0", "1"))
    for module, conv_name, norm_name in pairs:
        conv, norm = getattr(module, conv_name, None), getattr(module, norm_name, None)
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fold_batch_norm(conv, norm)
            setattr(module, norm_name, nn.Identity())


class ResNet(ImageBackbone):
    """Four stages at strides 4, 8, 16, 32. Sides are free.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        depths: blocks of each stage.
        embed_dim: channels of the stem; those inside the blocks of stage i (from 0) are embed_dim * 2^i.
        bottleneck: blocks of three convolutions, which return four times as many channels, rather than of two.
    """

    head_name = "fc"

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (3, 4, 6, 3),
        embed_dim: int = 64,
        bottleneck: bool = True,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if len(depths) != 4 or min(depths) < 1 or embed_dim < 1:
            raise InputError(f"ResNet has 4 stages of 1 or more blocks and embed_dim 1 or more; got {list(depths)} and {embed_dim}")
        block = Bottleneck if bottleneck else BasicBlock
        widths = [embed_dim << i for i in range(4)]
        self.feature_info = tuple(FeatureInfo(f"layer{i + 1}", width * block.expansion, 4 << i) for i, width in enumerate(widths))
        self.size_rule = SizeRule()
        self.num_features = widths[-1] * block.expansion
        self.conv1 = nn.Conv2d(in_channels, embed_dim, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(embed_dim)
        before = embed_dim
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            first = block(before, width, stride=1 if i == 0 else 2)
            before = width * block.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(first, *(block(before, width) for _ in range(depth - 1))))
        self.fc = self.make_head(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def stages(self) -> list[nn.Sequential]:
        return [self.get_submodule(f"layer{i}") for i in (1, 2, 3, 4)]  # type: ignore[misc]

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        x = self.conv1(x.contiguous(memory_format=torch.channels_last))
        x = F.max_pool2d(F.relu(self.bn1(x), inplace=True), 3, 2, 1)
        for stage in self.stages:
            for block in stage:
                x = self.run(block, x)
            yield x

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        pooled = feature.mean((2, 3))
        return pooled if pre_logits else self.fc(pooled)

    def parts(self) -> list[list[nn.Module]]:
        stem: list[nn.Module] = [self.conv1, self.bn1]
        return [stem, *([stage] for stage in list[nn.Module](self.stages))]

    def layer_id(self, name: str) -> int:
        """0 the stem, one more a block, the largest the head."""
        depths = [len(stage) for stage in self.stages]
        found = re.match(r"layer(\d)\.(\d+)\.", name)
        if found:
            return 1 + sum(depths[: int(found[1]) - 1]) + int(found[2])
        return 1 + sum(depths) if name.startswith("fc.") else 0

    def fold(self) -> None:
        _fold_norms(self)


def infer_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The constructor options that the names and shapes of a checkpoint tell."""
    blocks = [{name.split(".")[1] for name in state if name.startswith(f"layer{i}.")} for i in (1, 2, 3, 4)]
    return {
        "in_channels": int(state["conv1.weight"].shape[1]),
        "num_classes": len(state["fc.weight"]) if "fc.weight" in state else 0,
        "depths": [len(found) for found in blocks],
        "embed_dim": int(state["conv1.weight"].shape[0]),
        "bottleneck": "layer1.0.bn3.weight" in state,
    }


def _from_mm(name: str) -> str:
    return name.removeprefix("backbone.").removeprefix("head.")


LAYOUT = PublishedLayout(
    build=ResNet,
    infer=infer_sizes,
    keys=("conv1.weight", "bn1.weight", "layer1.0.conv2.weight", "layer4.0.downsample.0.weight"),
    others=(OtherNames("mmpretrain", ("backbone.conv1.weight", "backbone.layer1.0.conv2.weight", "head.fc.weight"), _from_mm),),
    head="fc.",
    stem="conv1.weight",
)


def _top1(first: float, second: float | None = None) -> tuple[PublishedResult, ...]:
    """As torchvision states them for its first and second weights."""
    results = [PublishedResult("ImageNet-1K, 224 pixels, torchvision's first weights", "top-1", first, "%")]
    if second is not None:
        results.append(PublishedResult("ImageNet-1K, 224 pixels, torchvision's second weights", "top-1", second, "%"))
    return tuple(results)


register_variants(
    ResNet,
    {
        "resnet18": Variant({"depths": (2, 2, 2, 2), "bottleneck": False}, "11.7 M parameters, 1.8 G MACs", _top1(69.758)),
        "resnet34": Variant({"bottleneck": False}, "21.8 M parameters, 3.7 G MACs", _top1(73.314)),
        "resnet50": Variant({}, "25.6 M parameters, 4.1 G MACs", _top1(76.130, 80.858)),
        "resnet101": Variant({"depths": (3, 4, 23, 3)}, "44.5 M parameters, 7.8 G MACs", _top1(77.374, 81.886)),
        "resnet152": Variant({"depths": (3, 8, 36, 3)}, "60.2 M parameters, 11.5 G MACs", _top1(78.312, 82.284)),
    },
    system="resnet",
    task="classification",
    paper="Deep Residual Learning for Image Recognition, He et al., CVPR 2016, arXiv 1512.03385",
    licence="BSD-3-Clause (torchvision's code and weights)",
    layout=LAYOUT,
)
