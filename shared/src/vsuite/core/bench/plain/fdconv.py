"""The plain form of FDConv: the order of operations of the official code, with whole transforms, masks and index tables."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.bench.plain import resnet
from vsuite.core.models.fdconv import FDConvResNet, FrequencyBandModulation, FrequencyDynamicConv2d, FrequencyDynamicLinear, to_spectrum
from vsuite.core.models.fdconv.layer import FrequencyDynamic

Module = TypeVar("Module", bound=nn.Module)


def build(**options: Any) -> nn.Module:
    """The model of these options with the plain operators in place of the fast ones."""
    return plain(resnet.plain(FDConvResNet(**options)))


def plain(model: Module) -> Module:
    """The same model, its frequency dynamic layers replaced by plain ones of the same parameters."""
    forwards = {FrequencyDynamicConv2d: _convolution, FrequencyDynamicLinear: _linear, FrequencyBandModulation: _bands}
    for module in model.modules():
        if isinstance(module, FrequencyDynamic):
            order = torch.arange(module.kernel_num)[:, None, None] == module.group_map.cpu()
            coefficients = order.flatten(1).nonzero()[:, 1].view(module.kernel_num, -1)
            columns = module.group_map.shape[1]
            module.coefficients = torch.stack([coefficients // columns, coefficients % columns])
        if type(module) in forwards:
            module.forward = forwards[type(module)].__get__(module)
    return model


def _gate(self: FrequencyDynamic, name: str, hidden: Tensor) -> Tensor | float:
    head = getattr(self.KSM_Global, name, None)
    if head is None:
        return 1.0
    logits = head(hidden) / self.temp
    return self.att_multi * torch.sigmoid(logits) if self.ksm_global_act == "sigmoid" else 1 + torch.tanh(logits)


def _attention(self: FrequencyDynamic, hidden: Tensor) -> Tensor:
    logits = self.KSM_Global.get_submodule("kernel_fc")(hidden) / self.kernel_temp
    count = self.kernel_num * self.param_ratio
    if self.ksm_global_act == "softmax":
        return torch.softmax(logits, 1)
    return (2 * torch.sigmoid(logits) if self.ksm_global_act == "sigmoid" else 1 + torch.tanh(logits)) / count


def _local(self: FrequencyDynamic, mean: Tensor) -> Tensor | float:
    """B, out, in, k, k."""
    if self.KSM_Local is None:
        return 1.0
    k = self.taps
    logits = self.KSM_Local.conv(self.KSM_Local.norm(mean)[:, None])  # B, out k k, in
    logits = logits.view(len(mean), -1, k, k, self.in_channels).permute(0, 1, 4, 2, 3)
    return self.att_multi * torch.sigmoid(logits) if self.ksm_local_act == "sigmoid" else 1 + torch.tanh(logits)


def _dynamic_weight(self: FrequencyDynamic, attention: Tensor) -> Tensor:
    """B, out, in, k, k: coefficients gathered group by group, scaled, and scattered into a map of zeros."""
    k, batch = self.taps, len(attention)
    spectrum = self.dft_weight if hasattr(self, "dft_weight") else to_spectrum(self.weight, self.param_ratio)
    coefficients: Any = self.coefficients
    rows, columns = coefficients.to(attention.device)
    attention = attention.view(batch, self.param_ratio, self.kernel_num, 1)
    alpha = min(self.in_channels, self.out_channels) // 2 * self.kernel_num * self.param_ratio
    total = torch.zeros(batch, *spectrum.shape[1:], device=attention.device)
    for copy in range(self.param_ratio):
        taken = spectrum[copy][rows, columns][None] * alpha  # 1, groups, coefficients of a group, 2
        scaled = torch.stack([taken[..., 0] * attention[:, copy], taken[..., 1] * attention[:, copy]], -1)
        total[:, rows, columns] += scaled
    weight = torch.fft.irfft2(torch.view_as_complex(total))
    return weight.view(batch, self.out_channels, k, self.in_channels, k).permute(0, 1, 3, 2, 4)


def _convolution(self: FrequencyDynamicConv2d, x: Tensor) -> Tensor:
    batch, k, inputs = len(x), self.taps, x.shape[2] * x.shape[3]
    mean = F.adaptive_avg_pool2d(x, 1)
    hidden = self.KSM_Global.relu(self.KSM_Global.bn(self.KSM_Global.fc(mean)))
    channels, filters, positions = (_gate(self, name, hidden) for name in ("channel_fc", "filter_fc", "spatial_fc"))
    local = _local(self, mean.flatten(1))
    weight = _dynamic_weight(self, _attention(self, hidden))
    if isinstance(positions, Tensor):
        positions = positions.view(batch, 1, 1, k, k)
    if self.FBM is not None:
        x = self.FBM(x)
    on_features = self.in_channels * self.out_channels * k * k >= (self.in_channels + self.out_channels) * inputs
    weight = weight * positions * local
    if on_features:
        x = x * channels
    elif isinstance(channels, Tensor) and isinstance(filters, Tensor):
        weight = weight * channels.view(batch, 1, -1, 1, 1) * filters.view(batch, -1, 1, 1, 1)
    x = x.reshape(1, -1, *x.shape[2:])
    weight = weight.reshape(-1, self.in_channels, k, k).to(x.dtype)
    out = F.conv2d(x, weight, None, self.stride, self.padding, self.dilation, batch)
    out = out.view(batch, self.out_channels, *out.shape[2:])
    if on_features:
        out = out * filters
    return out if self.bias is None else out + self.bias[:, None, None]


def _linear(self: FrequencyDynamicLinear, x: Tensor) -> Tensor:
    tokens = x.flatten(1, -2).transpose(1, 2)[..., None]  # B, in, N, 1
    mean = tokens.mean((2, 3), keepdim=True)
    hidden = self.KSM_Global.relu(self.KSM_Global.bn(self.KSM_Global.fc(mean)))
    channels, filters = (_gate(self, name, hidden) for name in ("channel_fc", "filter_fc"))
    weight = (_dynamic_weight(self, _attention(self, hidden)) * _local(self, mean.flatten(1)))[..., 0, 0]
    out = torch.bmm(weight, (tokens * channels)[..., 0])[..., None] * filters
    out = out[..., 0].transpose(1, 2).reshape(*x.shape[:-1], -1)
    return out if self.bias is None else out + self.bias


def _bands(self: FrequencyBandModulation, x: Tensor) -> Tensor:
    x = x.float()
    batch, channels, height, width = x.shape
    spectrum = torch.fft.rfft2(x, norm="ortho")
    grouped = (batch, self.groups, channels // self.groups, height, width)
    v, u = torch.meshgrid(torch.fft.fftfreq(64, device=x.device), torch.fft.rfftfreq(64, device=x.device), indexing="ij")
    distance = torch.maximum(v.abs(), u.abs())
    before, total = x, torch.zeros_like(x)
    for i, conv in enumerate(self.freq_weight_conv_list):
        gate = _band_gate(self, conv(x))[:, :, None]
        if i == len(self.k_list):
            return total + (before.view(grouped) * gate).view_as(x)
        mask = (distance < 0.5 / self.k_list[i] + 1e-8).float()[None, None]
        mask = F.interpolate(mask, size=spectrum.shape[2:], mode="nearest")
        low = torch.fft.irfft2(spectrum * mask, s=(height, width), norm="ortho")
        total = total + ((before - low).reshape(grouped) * gate).view_as(x)
        before = low
    return total + before


def _band_gate(self: FrequencyBandModulation, logits: Tensor) -> Tensor:
    if self.act == "sigmoid":
        return 2 * torch.sigmoid(logits)
    if self.act == "tanh":
        return 1 + torch.tanh(logits)
    return self.groups * torch.softmax(logits, 1)
