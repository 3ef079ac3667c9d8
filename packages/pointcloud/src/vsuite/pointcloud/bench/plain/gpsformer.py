"""The plain form of GPSFormer: every operator as the equations say it, point operations as loops and sorts in torch.

The baseline of the benchmark and the oracle of the tests. It shares the fast form's parameter names and nothing of its
operators: farthest points level by level, distances for each radius anew, edges concatenated before one product, scores
of attention written out, a power for each neighbour, norms as layers of their own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.pointcloud.models.gpsformer import (
    Attention,
    GlobalPerception,
    GPSEncoder,
    GPSFormer,
    StructureFitting,
    StructureScale,
    bounded_power,
)
from vsuite.pointcloud.models.point_layers import LinearNorm


def plain_farthest_points(points: Tensor, num_samples: int) -> Tensor:
    """points: B, N, 3 -> B, num_samples; the loop as PointNet++ code in torch writes it, from index 0."""
    batch, num_points, _ = points.shape
    chosen = torch.zeros(batch, num_samples, dtype=torch.long)
    distance = torch.full((batch, num_points), 1e10)
    farthest = torch.zeros(batch, dtype=torch.long)
    rows = torch.arange(batch)
    for i in range(num_samples):
        chosen[:, i] = farthest
        centre = points[rows, farthest].view(batch, 1, 3)
        x, y, z = ((points - centre) ** 2).unbind(-1)
        distance = torch.minimum(distance, x + y + z)
        farthest = distance.max(-1)[1]
    return chosen


def plain_ball_query(points: Tensor, centres: Tensor, radius: float, num_samples: int) -> Tensor:
    """B, M, num_samples; sorts indices, as PointNet++ code in torch does, with the strict comparison of the CUDA code."""
    num_points = points.shape[1]
    x, y, z = ((centres[:, :, None] - points[:, None]) ** 2).unbind(-1)
    index = torch.arange(num_points).expand(*centres.shape[:2], -1).clone()
    index[x + y + z >= float(torch.tensor(radius) ** 2)] = num_points
    index = index.sort(dim=-1)[0][:, :, :num_samples]
    index = F.pad(index, (0, num_samples - index.shape[2]), value=num_points)
    first = index[:, :, :1].expand_as(index)
    return torch.where(index == num_points, first, index)


def plain_gather(features: Tensor, index: Tensor) -> Tensor:
    rows = torch.arange(len(features)).view(-1, *[1] * (index.ndim - 1)).expand_as(index)
    return features[rows, index]


def _linear_norm(self: LinearNorm, x: Tensor) -> Tensor:
    x = self[0](x)
    return self[1](x.reshape(-1, x.shape[-1])).view(x.shape)


def _attention(self: Attention, query: Tensor, context: Tensor) -> Tensor:
    batch, length, dim = query.shape
    q, k, v = (
        layer(x).view(batch, -1, self.num_heads, dim // self.num_heads).transpose(1, 2)
        for layer, x in ((self.q, query), (self.k, context), (self.v, context))
    )
    weights = (q @ k.transpose(-2, -1) / (dim // self.num_heads) ** 0.5).softmax(dim=-1)
    return self.proj((weights @ v).transpose(1, 2).reshape(batch, length, dim))


def _graph_features(self: GlobalPerception, moved: Tensor, features: Tensor) -> Tensor:
    k = min(self.num_neighbours, features.shape[1])
    index = torch.cdist(moved, features).topk(k, dim=-1, largest=False)[1]
    centre = moved.unsqueeze(2).expand(-1, -1, k, -1)
    edges = torch.cat([centre, plain_gather(features, index) - centre], dim=-1)
    return F.leaky_relu(self.edge(edges), 0.2).max(dim=2)[0]


def _scale(self: StructureScale, features: Tensor, points: Tensor, centres: Tensor, index: Tensor) -> Tensor:
    low = plain_gather(F.relu(self.low(features)), index).max(dim=2)[0]
    values = self.value(features)
    near, centre = plain_gather(points, index), plain_gather(points, centres).unsqueeze(2)
    geometry = [centre.expand_as(near), near, near - centre, (near - centre).norm(dim=-1, keepdim=True)]
    weights = self.geo2(F.relu(self.geo1(torch.cat(geometry, dim=-1))))
    u = weights * (plain_gather(values, index) - plain_gather(values, centres).unsqueeze(2))
    terms = torch.sign(u) * (u.abs() + 1e-6) ** bounded_power(self.p)
    high = F.relu(self.bn(terms.view(-1, terms.shape[-1])).view(terms.shape))
    return low + high.max(dim=2)[0]


def _fitting(self: StructureFitting, features: Tensor, points: Tensor, centres: Tensor) -> Tensor:
    chosen = plain_gather(points, centres)
    fitted = []
    for scale, radius, samples in zip(self.scales, self.radii, self.num_samples, strict=True):
        fitted.append(scale(features, points, centres, plain_ball_query(points, chosen, radius, samples)))
    return F.relu(self.fuse(torch.cat(fitted, dim=-1)))


def _features(self: GPSEncoder, points: Tensor) -> list[tuple[Tensor, Tensor]]:
    levels = [(points, F.relu(self.stem(points)))]
    for stage in self.stages:
        points, features = levels[-1]
        centres = plain_farthest_points(points, points.shape[1] // 2)
        levels.append((plain_gather(points, centres), stage(features, points, centres)))
    points, features = levels.pop()
    return [*levels, (points, self.final(features))]


PLAIN: dict[type[nn.Module], dict[str, Any]] = {
    LinearNorm: {"forward": _linear_norm},
    Attention: {"forward": _attention},
    GlobalPerception: {"graph_features": _graph_features},
    StructureScale: {"forward": _scale},
    StructureFitting: {"forward": _fitting},
}


def plain(model: nn.Module) -> nn.Module:
    """The model with the plain operators in place of the fast ones, changed in place."""
    for module in model.modules():
        methods = PLAIN.get(type(module), {}) | ({"forward_features": _features} if isinstance(module, GPSEncoder) else {})
        for name, method in methods.items():
            setattr(module, name, method.__get__(module))
    return model


def build(**options: Any) -> nn.Module:
    """The model that `create_model("gpsformer", **options)` builds, in its plain form."""
    return plain(GPSFormer(**options))
