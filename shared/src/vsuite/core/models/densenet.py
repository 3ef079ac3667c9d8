"""DenseNet: each layer sees the maps of all layers before it in its block (Huang et al., CVPR 2017)."""

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


class DenseLayer(nn.Module):
    """Norm, 1x1 convolution, norm, 3x3 convolution: all maps so far -> the `growth_rate` new ones."""

    def __init__(self, in_channels: int, growth_rate: int, bottleneck: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, bottleneck * growth_rate, 1, bias=False)
        self.norm2: nn.Module = nn.BatchNorm2d(bottleneck * growth_rate)
        self.conv2 = nn.Conv2d(bottleneck * growth_rate, growth_rate, 3, 1, 1, bias=False)

    def forward(self, *maps: Tensor) -> Tensor:
        """maps: B, C_i, H, W, one or more, C_i summing up to in_channels -> B, growth_rate, H, W.

        They are joined in here, so that a checkpointed layer keeps none of the joined maps, whose memory grows with the
        square of the number of layers.
        """
        x = maps[0] if len(maps) == 1 else torch.cat(maps, 1)
        y = self.conv1(F.relu(self.norm1(x), inplace=True))
        return self.conv2(F.relu(self.norm2(y), inplace=True))

    def fold(self) -> None:
        if isinstance(self.norm2, nn.BatchNorm2d):
            fold_batch_norm(self.conv1, self.norm2)
            self.norm2 = nn.Identity()


class Transition(nn.Module):
    """Norm, 1x1 convolution to half the channels, 2x2 mean. B, C, H, W -> B, C // 2, H // 2, W // 2.

    The mean commutes with the convolution and comes first, which leaves a quarter of its work.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, in_channels // 2, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.avg_pool2d(F.relu(self.norm(x), inplace=True), 2))


class DenseNet(ImageBackbone):
    """Four blocks at strides 4, 8, 16, 32. Sides are free from 29 pixels up.

    Args:
        in_channels, num_classes: see `ImageBackbone`.
        depths: layers of each block.
        embed_dim: channels of the stem.
        growth_rate: channels that each layer adds.
        bottleneck: how many times as wide as that the 1x1 convolutions' outputs are.
    """

    head_name = "classifier"

    def __init__(
        self,
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        depths: Sequence[int] = (6, 12, 24, 16),
        embed_dim: int = 64,
        growth_rate: int = 32,
        bottleneck: int = 4,
    ) -> None:
        super().__init__(in_channels, num_classes)
        if len(depths) != 4 or min(*depths, embed_dim, growth_rate, bottleneck) < 1:
            raise InputError(
                "DenseNet has 4 blocks of 1 or more layers, and embed_dim, growth_rate and bottleneck are 1 or more;"
                f" got {list(depths)}, {embed_dim}, {growth_rate} and {bottleneck}"
            )
        stem = {"conv0": nn.Conv2d(in_channels, embed_dim, 7, 2, 3, bias=False), "norm0": nn.BatchNorm2d(embed_dim)}
        modules: dict[str, nn.Module] = dict(stem)
        width, info = embed_dim, []
        for i, depth in enumerate(depths, 1):
            layers = {f"denselayer{j + 1}": DenseLayer(width + j * growth_rate, growth_rate, bottleneck) for j in range(depth)}
            modules[f"denseblock{i}"] = nn.ModuleDict(layers)
            width += depth * growth_rate
            info.append(FeatureInfo(f"body.denseblock{i}", width, 2 << i))
            if i < 4:
                modules[f"transition{i}"] = Transition(width)
                width //= 2
        modules["norm5"] = nn.BatchNorm2d(width)
        self.body = nn.ModuleDict(modules)  # published as `features`, which is what a backbone's method is called
        self.feature_info = tuple(info)
        self.size_rule = SizeRule(minimum=29)
        self.num_features = width
        self.classifier = self.make_head(num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def pyramid(self, x: Tensor) -> Iterator[Tensor]:
        x = self.body["conv0"](x.contiguous(memory_format=torch.channels_last))
        x = F.max_pool2d(F.relu(self.body["norm0"](x), inplace=True), 3, 2, 1)
        for i in range(1, 5):
            x = x if i == 1 else self.run(self.body[f"transition{i - 1}"], x)
            maps = [x]
            for layer in self.layers(i):
                maps.append(self.run(layer, *maps))
            x = torch.cat(maps, 1)
            yield x

    def layers(self, block: int) -> list[nn.Module]:
        """The layers of a block, counted from 1."""
        return list(self.body.get_submodule(f"denseblock{block}").children())

    def forward_head(self, feature: Tensor, *, pre_logits: bool = False) -> Tensor:
        pooled = F.relu(self.body["norm5"](feature), inplace=True).mean((2, 3))
        return pooled if pre_logits else self.classifier(pooled)

    def parts(self) -> list[list[nn.Module]]:
        later = [[self.body[f"transition{i - 1}"], self.body[f"denseblock{i}"]] for i in (2, 3, 4)]
        return [[self.body["conv0"], self.body["norm0"]], [self.body["denseblock1"]], *later]

    def layer_id(self, name: str) -> int:
        """0 the stem, one more a layer of a block, a transition with the layer that follows; the largest the head and its norm."""
        starts = [1 + sum(len(self.layers(j)) for j in range(1, i)) for i in range(1, 6)]
        if found := re.match(r"body\.denseblock(\d)\.denselayer(\d+)\.", name):
            return starts[int(found[1]) - 1] + int(found[2]) - 1
        if found := re.match(r"body\.transition(\d)\.", name):
            return starts[int(found[1])]
        return 0 if name.startswith(("body.conv0.", "body.norm0.")) else starts[-1]

    def fold(self) -> None:
        conv, norm = self.body["conv0"], self.body["norm0"]
        if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            fold_batch_norm(conv, norm)
            self.body["norm0"] = nn.Identity()


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    pattern = r"body\.denseblock{}\.denselayer\d+\.conv1\.weight"
    growth_rate = len(state["body.denseblock1.denselayer1.conv2.weight"])
    return {
        "in_channels": int(state["body.conv0.weight"].shape[1]),
        "num_classes": len(state["classifier.weight"]) if "classifier.weight" in state else 0,
        "depths": [sum(bool(re.fullmatch(pattern.format(i), name)) for name in state) for i in (1, 2, 3, 4)],
        "embed_dim": len(state["body.conv0.weight"]),
        "growth_rate": growth_rate,
        "bottleneck": len(state["body.denseblock1.denselayer1.conv1.weight"]) // growth_rate,
    }


def _from_file(name: str) -> str:
    """torchvision's files number the parts of a layer `norm.1`; those of U-Nets hold the network as `encoder`."""
    name = re.sub(r"^(?:encoder\.)?features\.", "body.", name)
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)


LAYOUT = PublishedLayout(
    build=DenseNet,
    infer=_infer,
    keys=("body.conv0.weight", "body.denseblock1.denselayer1.conv1.weight", "body.transition1.conv.weight", "body.norm5.weight"),
    renames=(("features.", "body."),),
    others=(
        OtherNames("torchvision's files", ("features.denseblock1.denselayer1.norm.1.weight",), _from_file),
        OtherNames("segmentation_models_pytorch", ("encoder.features.conv0.weight",), _from_file),
    ),
    ignored=("decoder.*", "segmentation_head.*"),  # of a U-Net that was pre-trained as a masked autoencoder
    fresh=("classifier.*",),
    head="classifier.",
    stem="body.conv0.weight",
)


def _published(top1: float, *others: PublishedResult) -> tuple[PublishedResult, ...]:
    return (PublishedResult("ImageNet-1K, 224 pixels, torchvision's weights", "top-1", top1, "%"), *others)


CHEST = (
    PublishedResult("ChestX-ray14, pre-trained on ImageNet labels", "mean AUC", 82.2, "%"),
    PublishedResult("ChestX-ray14, pre-trained with MAE on 0.3 M X-rays", "mean AUC", 81.2, "%"),
    PublishedResult("ChestX-ray14, pre-trained with MoCo v2 on 0.3 M X-rays", "mean AUC", 80.6, "%"),
)

register_variants(
    DenseNet,
    {
        "densenet121": Variant({}, "8.0 M parameters, 2.8 G MACs", _published(74.434, *CHEST)),
        "densenet161": Variant(
            {"depths": (6, 12, 36, 24), "embed_dim": 96, "growth_rate": 48}, "28.7 M parameters, 7.7 G MACs", _published(77.138)
        ),
        "densenet169": Variant({"depths": (6, 12, 32, 32)}, "14.1 M parameters, 3.4 G MACs", _published(75.600)),
        "densenet201": Variant({"depths": (6, 12, 48, 32)}, "20.0 M parameters, 4.3 G MACs", _published(76.896)),
    },
    system="densenet",
    task="classification",
    paper="Densely Connected Convolutional Networks, Huang et al., CVPR 2017, arXiv 1608.06993; chest X-rays: arXiv 2210.12843",
    licence="BSD-3-Clause (torchvision's code and weights)",
    layout=LAYOUT,
)
