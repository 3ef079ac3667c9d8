"""The plain form of DenseNet: contiguous maps, a copy for each activation, means after the convolutions, nothing folded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.models.densenet import DenseLayer, DenseNet, Transition


def _layer(self: DenseLayer, *maps: Tensor) -> Tensor:
    y = self.conv1(torch.relu(self.norm1(torch.cat(maps, 1))))
    return self.conv2(torch.relu(self.norm2(y)))


def _transition(self: Transition, x: Tensor) -> Tensor:
    return F.avg_pool2d(self.conv(torch.relu(self.norm(x))), 2)


def _pyramid(self: DenseNet, x: Tensor) -> Iterator[Tensor]:
    x = F.max_pool2d(torch.relu(self.body["norm0"](self.body["conv0"](x))), 3, 2, 1)
    for i in range(1, 5):
        x = x if i == 1 else self.body[f"transition{i - 1}"](x)
        for layer in self.layers(i):
            x = torch.cat([x, layer(x)], 1)
        yield x


FORWARDS = {DenseLayer: _layer, Transition: _transition}


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = DenseNet(**options)
    for module in model.modules():
        if type(module) in FORWARDS:
            module.forward = FORWARDS[type(module)].__get__(module)
    model.pyramid = _pyramid.__get__(model)  # type: ignore[method-assign]
    return model
