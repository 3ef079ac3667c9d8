"""The plain form of ResNet: contiguous maps, a copy for each activation and sum, nothing folded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core.models.resnet import BasicBlock, Bottleneck, ResNet


def _basic(self: BasicBlock, x: Tensor) -> Tensor:
    shortcut = x if self.downsample is None else self.downsample(x)
    y = torch.relu(self.bn1(self.conv1(x)))
    return torch.relu(self.bn2(self.conv2(y)) + shortcut)


def _bottleneck(self: Bottleneck, x: Tensor) -> Tensor:
    shortcut = x if self.downsample is None else self.downsample(x)
    y = torch.relu(self.bn1(self.conv1(x)))
    y = torch.relu(self.bn2(self.conv2(y)))
    return torch.relu(self.bn3(self.conv3(y)) + shortcut)


def _pyramid(self: ResNet, x: Tensor) -> Iterator[Tensor]:
    x = torch.relu(self.bn1(self.conv1(x)))
    x = nn.functional.max_pool2d(x, 3, 2, 1)
    for stage in self.stages:
        x = stage(x)
        yield x


FORWARDS = {BasicBlock: _basic, Bottleneck: _bottleneck}


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    return plain(ResNet(**options))


def plain(model: ResNet) -> ResNet:
    """The same model, its forward passes replaced by the plain ones."""
    for module in model.modules():
        if type(module) in FORWARDS:
            module.forward = FORWARDS[type(module)].__get__(module)
    model.pyramid = _pyramid.__get__(model)  # type: ignore[method-assign]
    return model
