"""The plain form of ConvNeXt: contiguous maps, permuted copies, the channel norm written out, nothing folded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.models.convnext import Block, ConvNeXt, ConvNeXtIsotropic, StagedConvNet
from vsuite.core.nn import LayerNorm2d


def _block(self: Block, x: Tensor) -> Tensor:
    y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
    y = self.pwconv2(F.gelu(self.pwconv1(y)))
    if self.gamma is not None:
        y = self.gamma * y
    return x + self.drop_path(y.permute(0, 3, 1, 2))


def channel_norm(self: LayerNorm2d, x: Tensor) -> Tensor:
    centred = x - x.mean(1, keepdim=True)
    x = centred / (centred.pow(2).mean(1, keepdim=True) + self.eps).sqrt()
    return self.weight[:, None, None] * x + self.bias[:, None, None]


def pyramid(self: StagedConvNet, x: Tensor) -> Iterator[Tensor]:
    for downsample, stage in zip(self.downsample_layers, self.stages, strict=True):
        x = stage(downsample(x))
        yield x


def _isotropic(self: ConvNeXtIsotropic, x: Tensor) -> Iterator[Tensor]:
    yield self.blocks(self.stem(x))


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = ConvNeXtIsotropic(**options) if "depth" in options else ConvNeXt(**options)
    forwards = {Block: _block, LayerNorm2d: channel_norm}
    for module in model.modules():
        if type(module) in forwards:
            module.forward = forwards[type(module)].__get__(module)
    model.pyramid = (_isotropic if "depth" in options else pyramid).__get__(model)  # type: ignore[method-assign]
    return model
