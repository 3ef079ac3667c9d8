"""The plain form of FlatFormer: index vectors of padded groups, scores written out, sines of every voxel, wide rows of every point.

As in the official code, the orders are made once a frame, and each layer gathers its padded groups and puts them back; the
map is filled sample by sample; convolutions run on contiguous maps, all branches of the head over the whole map. Shares
parameter names with the fast form, and nothing of its operators.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.pointcloud.boxes import Detections
from vsuite.pointcloud.models.detector import LidarDetector
from vsuite.pointcloud.models.flatformer import ORDERS, FlatFormer, FlatFormerLayer
from vsuite.pointcloud.models.flatformer import build as build_fast
from vsuite.pointcloud.models.vfe import DynamicVFE


def mapping(coordinates: Tensor, batch_size: int, window: Sequence[int], grid: Sequence[int], group_size: int) -> dict[str, Tensor]:
    """The six index vectors as the official code makes them, for samples of a group or more."""
    lengths = torch.bincount(coordinates[:, 0], minlength=batch_size)
    padded = (lengths + group_size - 1) // group_size * group_size
    starts, padded_starts = F.pad(lengths.cumsum(0), (1, 0)), F.pad(padded.cumsum(0), (1, 0))
    win2flat, flat2win = torch.arange(int(starts[-1])), torch.arange(int(padded_starts[-1]))
    for i in range(batch_size):
        win2flat[starts[i] : starts[i + 1]] += padded_starts[i] - starts[i]
        flat2win[padded_starts[i] : padded_starts[i + 1]] -= padded_starts[i] - starts[i]
        if lengths[i] != padded[i]:
            rest = lengths[i] % group_size
            before = flat2win[padded_starts[i + 1] - 2 * group_size + rest : padded_starts[i + 1] - group_size]
            flat2win[padded_starts[i + 1] - group_size + rest : padded_starts[i + 1]] = before
    return {"win2flat": win2flat, "flat2win": flat2win, **orders(coordinates, window, grid)}


def orders(coordinates: Tensor, window: Sequence[int], grid: Sequence[int]) -> dict[str, Tensor]:
    """The four permutations by the formula of the paper's code."""
    (wx, wy), (sx, sy) = window[:2], grid[:2]
    a, b, c, d = 2 * wx, 2 * wy, 2 * (math.ceil(sx / wx) + 1), 2 * (math.ceil(sy / wy) + 1)
    found = {}
    for suffix, (down, right) in {"": (0, 0), "_shift": (wy // 2, wx // 2)}.items():
        x, y = coordinates[:, 3] + right, coordinates[:, 2] + down
        x1, x2, y1, y2 = x // wx, x % wx, y // wy, y % wy
        offset = coordinates[:, 0] << 40  # the official sx * sy * 10 lets samples overlap on small grids
        vx = (c * y1 + (-1) ** y1 * x1) * a * b + (-1) ** y1 * (b * x2 + (-1) ** x2 * y2) + offset
        vy = (d * x1 + (-1) ** x1 * y1) * a * b + (-1) ** x1 * (a * y2 + (-1) ** y2 * x2) + offset
        found["x" + suffix], found["y" + suffix] = vx.sort()[1], vy.sort()[1]
    return found


def position(coordinates: Tensor, dim: int, grid: Sequence[int], temperature: float, normalize: bool) -> Tensor:
    """`FlatFormer.position_embedding`."""
    width = dim // 4 * 2
    x, y = coordinates[:, 3].float(), coordinates[:, 2].float()
    if normalize:
        x, y = x / grid[0] * 2 * 3.1415, y / grid[1] * 2 * 3.1415
    channel = torch.arange(width, dtype=torch.float32)
    frequency = temperature ** (2 * torch.div(channel, 2, rounding_mode="floor") / width)
    halves = []
    for coordinate in (x, y):
        angle = coordinate[:, None] / frequency[None]
        halves.append(torch.stack([angle[:, ::2].sin(), angle[:, 1::2].cos()], dim=-1).flatten(1))
    return F.pad(torch.cat(halves, dim=1), (0, dim - 2 * width))


def _layer(layer: FlatFormerLayer, groups: Tensor, positions: Tensor) -> Tensor:
    """One layer on padded groups: n, G, C -> n, G, C."""
    attn, heads = layer.attn.attn, layer.attn.num_heads
    count, size, dim = groups.shape
    with_position = groups + positions
    weights, biases = attn.in_proj_weight.chunk(3), attn.in_proj_bias.chunk(3)
    query, key, value = (
        F.linear(x, w, b).reshape(count, size, heads, dim // heads).permute(0, 2, 1, 3)
        for x, w, b in zip((with_position, with_position, groups), weights, biases, strict=True)
    )
    scores = (query @ key.transpose(-2, -1) * (dim // heads) ** -0.5).softmax(dim=-1)
    out = attn.out_proj((scores @ value).permute(0, 2, 1, 3).reshape(count, size, dim))
    groups = layer.norm1(groups + out)
    return layer.norm2(groups + layer.fc2(F.gelu(layer.fc1(groups))))


def forward_voxels(self: FlatFormer, features: Tensor, coordinates: Tensor, batch_size: int) -> Tensor:
    """`FlatFormer.forward_voxels`, for samples of a group or more."""
    indices = mapping(coordinates, batch_size, self.window, self.grid, self.group_size)
    positions = position(coordinates, self.in_channels, self.grid, self.pos_temperature, self.normalize_pos)
    x, shape = features.clone(), (-1, self.group_size, features.shape[1])
    for layer, k in self.layers():
        order = indices[ORDERS[k]]
        places = order[indices["flat2win"]]
        groups = _layer(layer, x[places].view(shape), positions[places].view(shape))
        x[order] = groups.flatten(0, 1)[indices["win2flat"]]
    return x


def _forward(self: FlatFormer, features: Tensor, coordinates: Tensor, batch_size: int) -> Tensor:
    x = self.forward_voxels(features, coordinates, batch_size)
    maps = []
    for i in range(batch_size):
        canvas = torch.zeros(self.in_channels, self.grid[0] * self.grid[1])
        mine = coordinates[:, 0] == i
        canvas[:, coordinates[mine, 2] * self.grid[0] + coordinates[mine, 3]] = x[mine].t()
        maps.append(canvas)
    return torch.stack(maps).view(batch_size, self.in_channels, self.grid[1], self.grid[0])


def voxel_features(self: DynamicVFE, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """`DynamicVFE.forward`."""
    lower, size = torch.tensor(self.point_cloud_range[:3]), torch.tensor(self.voxel_size)
    last = ((torch.tensor(self.point_cloud_range[3:]) - lower) / size).round().long() - 1
    rows = []
    for i, sample in enumerate(points):
        cell = torch.minimum(((sample[:, :3] - lower) / size).floor().long().clamp_min(0), last)
        rows.append(torch.cat([torch.full((len(sample), 1), i), cell.flip(1)], dim=1))
    voxels, index = torch.unique(torch.cat(rows), dim=0, return_inverse=True)
    flat = torch.cat(list(points))
    xyz = flat[:, :3]

    def reduced(x: Tensor, reduce: str) -> Tensor:
        return x.new_zeros(len(voxels), x.shape[1]).scatter_reduce(0, index[:, None].expand_as(x), x, reduce, include_self=False)

    centre = torch.cat(rows)[:, 1:].flip(1) * size + size / 2 + lower
    x = torch.cat([flat, xyz - reduced(xyz, "mean")[index], xyz - centre], dim=1)
    *first, final = self.layers()
    for layer in first:
        x = F.relu(layer.norm(layer.linear(x)))
        x = torch.cat([x, reduced(x, "amax")[index]], dim=1)
    return reduced(F.relu(final.norm(final.linear(x))), "amax"), voxels


@torch.no_grad()
def _predict(self: LidarDetector, points: Sequence[Tensor], score_threshold: float = 0.1) -> list[Detections]:
    settings = dataclasses.replace(self.bbox_head.decode_settings, score_threshold=score_threshold)
    return self.bbox_head.decode(self(self.inside(points)), settings)


def build(**options: Any) -> nn.Module:
    """The detector of these options with the plain operators in place of the fast ones."""
    model = build_fast(**options)
    encoder, voxels = model.middle_encoder, model.voxel_encoder
    assert isinstance(encoder, FlatFormer)
    assert isinstance(voxels, DynamicVFE)
    encoder.forward = _forward.__get__(encoder)  # type: ignore[method-assign]
    encoder.forward_voxels = forward_voxels.__get__(encoder)  # type: ignore[method-assign]
    voxels.forward = voxel_features.__get__(voxels)  # type: ignore[method-assign]
    model.predict = _predict.__get__(model)  # type: ignore[method-assign]
    return model
