"""Frequency band modulation: gates at each pixel on the bands of a map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError, unknown
from vsuite.core.nn import memoise

STORED = 64  # the published masks are of this many rows (and 33 columns), and resized by nearest neighbour


class FrequencyBandModulation(nn.Module):
    """Scales the frequency bands of a map by gates that depend on the position. B, C, H, W -> the same, in float32.

    Band i is what the low pass i - 1 leaves (the map itself for i = 0) less what the low pass i leaves; what the last low
    pass leaves stays as it is.

    Args:
        channels: C.
        k_list: low pass i keeps frequencies below 1 / (2 k_i) of a cycle a pixel; ascending.
        lowfreq_att: gate what the last low pass leaves, too.
        act: "sigmoid" (2 sigmoid), "tanh" (1 + tanh) or "softmax" (over the groups, times their number).
        spatial_group: groups of channels that share a gate; above 64 each channel has its own.
    """

    def __init__(
        self,
        channels: int,
        k_list: Sequence[float] = (2, 4, 8),
        *,
        lowfreq_att: bool = False,
        act: str = "sigmoid",
        spatial_group: int = 1,
    ) -> None:
        super().__init__()
        if not k_list or min(k_list) < 1 or sorted(k_list) != list(k_list):
            raise InputError(f"k_list takes numbers from 1 up in ascending order; got {list(k_list)}")
        if act not in ("sigmoid", "tanh", "softmax"):
            raise unknown("act of the band modulation", act, ("sigmoid", "tanh", "softmax"))
        self.groups = channels if spatial_group > 64 else spatial_group
        if channels % self.groups:
            raise InputError(f"spatial_group must divide the {channels} channels; got {spatial_group}")
        self.k_list, self.lowfreq_att, self.act = tuple(k_list), lowfreq_att, act
        self.freq_weight_conv_list = nn.ModuleList(
            nn.Conv2d(channels, self.groups, 3, padding=1, groups=self.groups) for _ in range(len(k_list) + lowfreq_att)
        )
        for conv in self.freq_weight_conv_list:
            nn.init.normal_(conv.weight, std=1e-6)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        gates = self._gates(x)
        # groups join the batch: B groups, H, W, C / groups
        x = (
            x.float()
            .permute(0, 2, 3, 1)
            .unflatten(3, (self.groups, -1))
            .permute(0, 3, 1, 2, 4)
            .reshape(-1, height, width, channels // self.groups)
        )
        out = modulate_bands(x.contiguous(), gates, self.k_list)
        return out.view(batch, self.groups, height, width, -1).permute(0, 1, 4, 2, 3).flatten(1, 2)

    def _gates(self, x: Tensor) -> Tensor:
        """B, C, H, W -> B groups, H, W, low passes + 1: the gate of each band, and that of what remains."""
        convs = self.freq_weight_conv_list
        # one convolution for all bands, group by group
        weight = torch.stack([conv.weight for conv in convs], 1).flatten(0, 1)  # type: ignore[misc]
        bias = torch.stack([conv.bias for conv in convs], 1).flatten()  # type: ignore[misc]
        logits = F.conv2d(x.to(weight.dtype), weight, bias, padding=1, groups=self.groups).float()
        logits = logits.unflatten(1, (self.groups, -1)).permute(0, 1, 3, 4, 2)  # B, groups, H, W, bands
        if self.act == "sigmoid":
            gates = 2 * logits.sigmoid()
        elif self.act == "tanh":
            gates = 1 + logits.tanh()
        else:
            gates = self.groups * logits.softmax(1)
        gates = gates.flatten(0, 1)
        return gates if self.lowfreq_att else F.pad(gates, (0, 1), value=1.0)


def modulate_bands(x: Tensor, gates: Tensor, k_list: tuple[float, ...]) -> Tensor:
    """The bands of a map, each times its gate, summed.

    With low passes P_i (P_0 = x) the sum of g_i (P_{i-1} - P_i) and g_n P_n is g_0 x plus the sum of (g_i - g_{i-1}) P_i. A low
    pass keeps so few frequencies that products with small matrices of cosines and sines beat whole transforms; the last of
    these products takes all low passes at once, with the steps between the gates in its matrix.

    Args:
        x: B, H, W, C, contiguous.
        gates: B, H, W, low passes + 1.
        k_list: low pass i keeps frequencies below 1 / (2 k_i); ascending.
    """
    if torch.compiler.is_compiling():
        return _modulate_by_whole_transforms(x, gates, k_list)
    batch, height, width, channels = x.shape
    tables = _transforms(height, width, tuple(_kept(k, height, width) for k in k_list), x.device)
    above, below, columns = tables[0].kept
    spectrum = torch.bmm(tables[0].across.expand(batch * height, -1, -1), x.view(-1, width, channels))  # B H, (part, columns), C
    spectrum = spectrum.view(batch, 2 * height, columns * channels)
    spectrum = torch.bmm(tables[0].down.expand(batch, -1, -1), spectrum).view(batch, above + below, 2, columns, channels)
    steps = gates.diff()
    rows, matrices = [], []
    for i, table in enumerate(tables):
        up, down, right = table.kept
        inner = spectrum
        if i > 0:
            inner = torch.cat([spectrum[:, :up, :, :right], spectrum[:, above : above + down, :, :right]], 1)
        row = torch.bmm(table.back_down.expand(batch, -1, -1), inner.view(batch, -1, right * channels))
        rows.append(row.view(batch * height, 2 * right, channels))
        matrices.append(steps[..., i : i + 1] * table.back_across)  # B, H, W, 2 columns
    matrix = torch.cat(matrices, 3).flatten(0, 1)
    out = torch.baddbmm((x * gates[..., :1]).view(-1, width, channels), matrix, torch.cat(rows, 1))
    return out.view(batch, height, width, channels)


def _kept(k: float, height: int, width: int) -> tuple[int, int, int]:
    """How many frequencies a low pass keeps: rows from 0 up, rows from -1 down, columns from 0 up."""
    limit = float(np.float32(0.5 / k + 1e-8))  # in float32 the margin is lost for k = 2
    half = STORED // 2
    above = sum(i / STORED < limit for i in range(half))
    below = sum(i / STORED < limit for i in range(1, half + 1))
    columns = sum(i / STORED < limit for i in range(half + 1))
    return _resized(above, STORED, height), height - _resized(STORED - below, STORED, height), _resized(columns, half + 1, width // 2 + 1)


def _resized(first: int, stored: int, size: int) -> int:
    """How many of `size` entries have one of the `first` of the stored entries as nearest neighbour."""
    source = np.floor(np.arange(size, dtype=np.float32) * (np.float32(stored) / np.float32(size)))  # rounds as interpolation does
    return int((source < first).sum())


def _modulate_by_whole_transforms(x: Tensor, gates: Tensor, k_list: tuple[float, ...]) -> Tensor:
    """The same in a graph that serves any size, as no size of a table follows from that of the map."""
    _, height, width, _ = x.shape
    spectrum = torch.view_as_real(torch.fft.rfft2(x.permute(0, 3, 1, 2)))  # B, C, H, W // 2 + 1, 2
    row, column = (_source(STORED, height, x), _source(STORED // 2 + 1, width // 2 + 1, x))
    row = torch.minimum(row, STORED - row)
    steps = gates.diff()
    out = x * gates[..., :1]
    for i, k in enumerate(k_list):
        limit = STORED * float(np.float32(0.5 / k + 1e-8))
        mask = ((row < limit)[:, None] & (column < limit)).to(x.dtype)[..., None]
        low = torch.fft.irfft2(torch.view_as_complex(spectrum * mask), s=(height, width))
        out = out + steps[..., i : i + 1] * low.permute(0, 2, 3, 1)
    return out


def _source(stored: int, size: int, like: Tensor) -> Tensor:
    scale = torch.full((), float(stored), device=like.device) / size
    return torch.floor(torch.arange(size, device=like.device) * scale)


@dataclass(frozen=True)
class Transforms:
    """The transforms to the frequencies that a low pass keeps, and back; parts are real and imaginary.

    Attributes:
        kept: how many there are, see `_kept`.
        across: (part, columns), W. down: (rows, part), (H, part). back_down: (H, part), (rows, part). back_across: W, (part, columns).
    """

    kept: tuple[int, int, int]
    across: Tensor
    down: Tensor
    back_down: Tensor
    back_across: Tensor


@memoise
def _transforms(height: int, width: int, kept: tuple[tuple[int, int, int], ...], device: torch.device) -> list[Transforms]:
    tables = []
    for above, below, columns in kept:
        angle = _angles(torch.arange(columns, device=device), width)
        across = torch.cat([angle.cos(), -angle.sin()])
        mirrored = torch.arange(columns, device=device) * 2 % width != 0  # such a column stands for its mirror image, too
        times = (1 + mirrored.float()).repeat(2) / width
        angle = _angles(torch.cat([torch.arange(above, device=device), -1 - torch.arange(below, device=device)]), height)
        cosine, sine = angle.cos(), angle.sin()
        down = torch.stack([torch.stack([cosine, sine], -1), torch.stack([-sine, cosine], -1)], 1).flatten(2).flatten(0, 1)
        tables.append(Transforms((above, below, columns), across, down, down.t() / height, (across * times[:, None]).t()))
    return tables


def _angles(frequencies: Tensor, size: int) -> Tensor:
    turns = torch.remainder(frequencies[:, None] * torch.arange(size, device=frequencies.device), size)
    return turns.float() * (2 * math.pi / size)
