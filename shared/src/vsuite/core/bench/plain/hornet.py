"""The plain form of HorNet: contiguous maps, 1x1 convolutions, the channel norm written out, filters resized at every call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.bench.plain.convnext import channel_norm, pyramid
from vsuite.core.models.hornet import Block, GlobalLocalFilter, GnConv, HorNet
from vsuite.core.nn import LayerNorm2d


def _filter(self: GlobalLocalFilter, x: Tensor) -> Tensor:
    near, far = self.pre_norm(x).chunk(2, dim=1)
    near = self.dw(near)
    height, width = far.shape[2:]
    weight: Tensor = self.complex_weight
    if weight.shape[1:3] != (height, width // 2 + 1):
        weight = F.interpolate(weight.permute(3, 0, 1, 2), size=(height, width // 2 + 1), mode="bilinear", align_corners=True)
        weight = weight.permute(1, 2, 3, 0)
    spectrum = torch.fft.rfft2(far.float(), dim=(2, 3), norm="ortho") * torch.view_as_complex(weight.contiguous())
    far = torch.fft.irfft2(spectrum, s=(height, width), dim=(2, 3), norm="ortho")
    x = torch.cat([near.unsqueeze(2), far.unsqueeze(2)], dim=2).reshape(x.shape)
    return self.post_norm(x)


def _gnconv(self: GnConv, x: Tensor) -> Tensor:
    first, rest = torch.split(self.proj_in(x), [self.dims[0], sum(self.dims)], dim=1)
    gates = torch.split(self.dwconv(rest) * self.scale, self.dims, dim=1)
    x = first * gates[0]
    for conv, gate in zip(self.pws, gates[1:], strict=True):
        x = conv(x) * gate
    return x if self.proj_out is None else self.proj_out(x)


def _block(self: Block, x: Tensor) -> Tensor:
    y = self.gnconv(self.norm1(x))
    x = x + self.drop_path(y if self.gamma1 is None else self.gamma1.view(-1, 1, 1) * y)
    y = self.pwconv2(F.gelu(self.pwconv1(self.norm2(x.permute(0, 2, 3, 1)))))
    y = y if self.gamma2 is None else self.gamma2 * y
    return x + self.drop_path(y.permute(0, 3, 1, 2))


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    model = HorNet(**options)
    forwards: dict[type, Any] = {Block: _block, GnConv: _gnconv, GlobalLocalFilter: _filter, LayerNorm2d: channel_norm}
    for module in model.modules():
        if type(module) in forwards:
            module.forward = forwards[type(module)].__get__(module)
    model.pyramid = pyramid.__get__(model)  # type: ignore[method-assign]
    return model
