"""Kernel spatial modulation: the gates on the weight, from the means of the channels of an image."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import fold_batch_norm, memoise


class StarReLU(nn.Module):
    """scale * relu(x)^2 + bias, both learnt."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        return torch.addcmul(self.bias, x * self.scale, x)


class GlobalModulation(nn.Module):
    """Gates of an image from the means of its channels: on input channels, filters, kernel positions, groups of frequencies."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        taps: int,
        num_groups: int,
        *,
        reduction: float,
        only_groups: bool,
        official_start: bool,
    ) -> None:
        super().__init__()
        hidden = max(int(in_channels * reduction), 16)
        self.fc = nn.Conv2d(in_channels, hidden, 1, bias=False)
        self.bn = nn.BatchNorm2d(hidden)
        self.relu = StarReLU()
        sizes = {"kernel_fc": num_groups}
        if not only_groups:
            sizes |= {"channel_fc": in_channels, "filter_fc": out_channels}
            if taps > 1:
                sizes |= {"spatial_fc": taps**2}
        for name, size in sizes.items():
            self.add_module(name, nn.Conv2d(hidden, size, 1))
        for name, module in self.named_children():
            if not isinstance(module, nn.Conv2d):
                continue
            if name == "fc" or (name == "filter_fc" and official_start):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            else:
                nn.init.normal_(module.weight, std=1e-6)
            if module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, mean: Tensor) -> Tensor:
        """B, in_channels -> B, hidden."""
        if isinstance(self.bn, nn.BatchNorm2d) and self.bn.training and len(mean) == 1:
            raise InputError("frequency dynamic convolutions train on 2 or more images a batch, or with their batch norms in eval mode")
        hidden = F.linear(mean, self.fc.weight.flatten(1), self.fc.bias)
        return self.relu(self.bn(hidden[:, :, None, None])[:, :, 0, 0])

    def logits(self, name: str, hidden: Tensor, temperature: float) -> Tensor | None:
        """Those of one kind of gates, in float32; None where the layer has none of the kind."""
        head = getattr(self, name, None)
        if head is None:
            return None
        logits = F.linear(hidden, head.weight.flatten(1), head.bias).float()
        return logits if temperature == 1 else logits / temperature

    def fold(self) -> None:
        if isinstance(self.bn, nn.BatchNorm2d):
            fold_batch_norm(self.fc, self.bn)
            self.bn = nn.Identity()  # type: ignore[assignment]


class LocalModulation(nn.Module):
    """A gate for each number of the weight, from the means of the channels: a convolution that slides along the channels."""

    def __init__(self, channels: int, out_channels: int, taps: int) -> None:
        super().__init__()
        width = round(math.log2(channels) / 2 + 0.5) // 2 * 2 + 1
        self.conv = nn.Conv1d(1, out_channels * taps * taps, width, padding=width // 2, bias=False)
        self.norm = nn.LayerNorm(channels)
        self.taps = taps
        nn.init.constant_(self.conv.weight, 1e-6)

    def forward(self, mean: Tensor) -> Tensor:
        """B, in_channels -> logits B, out * k, in * k: one product, in the layout of the transformed weight."""
        k, width = self.taps, self.conv.kernel_size[0]
        batch, channels = mean.shape
        windows = F.pad(self.norm(mean), (width // 2, width // 2)).unfold(1, width, 1).transpose(1, 2)  # B, width, in
        if k > 1:  # column (i, kw) of the weight sees the taps of kw only
            windows = (windows[:, None, :, :, None] * _identity(k, mean.device, mean.dtype)[:, None, None]).reshape(
                batch, k * width, channels * k
            )
        return torch.bmm(self.conv.weight.view(-1, k * width).expand(batch, -1, -1), windows)


@memoise
def _identity(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.eye(size, device=device, dtype=dtype)
