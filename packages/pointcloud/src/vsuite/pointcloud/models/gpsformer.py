"""GPSFormer: global perception and local structure fitting transformer for shapes (Wang et al., ECCV 2024).

A reconstruction: the authors published neither code nor weights. The structure (offset, deformable graph convolution on
k = 20 neighbours, cross-attention, attention; local fitting by a flat and a power term over three balls; three or five
blocks that halve the points) is the paper's; sizes of heads, norms and activations are ours.

Axes: B samples, N points, M centres, k neighbours, C channels, K classes.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, PublishedLayout, PublishedResult
from vsuite.core.nn import attend, perceptron
from vsuite.core.registry import Variant, register_variants
from vsuite.pointcloud.models.point_layers import LinearNorm, check_cloud, norm_factor, normalised
from vsuite.pointcloud.point_ops import ball_queries, ball_query, farthest_points, gather_points, nearest_features

RADII = (0.1, 0.2, 0.4)
NUM_SAMPLES = (8, 16, 32)


def _leaky(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2)


class Attention(nn.Module):
    """Multi-head attention with biases; queries from one set, keys and values from another. B, N, C; B, M, C -> B, N, C."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        return self.proj(attend(self.q(query), self.k(context), self.v(context), self.num_heads))


class GlobalPerception(nn.Module):
    """GPM: every point sees the cloud, first its neighbours in feature space, then all points. B, N, C -> B, N, C.

    Args:
        dim: C, divisible by `num_heads`.
        num_neighbours: k of the graph convolution; clouds of fewer points use them all.
        num_heads: of both attentions.
    """

    def __init__(self, dim: int, num_neighbours: int = 20, num_heads: int = 4) -> None:
        super().__init__()
        self.num_neighbours = num_neighbours
        self.offset = LinearNorm(dim, dim)
        self.edge = LinearNorm(2 * dim, dim)
        self.cross = Attention(dim, num_heads)
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        moved = self.move(features)
        graph = self.graph_features(moved, features)
        x = graph + self.cross(moved, graph)
        normed = self.norm1(x)
        x = x + self.attn(normed, normed)
        return x + perceptron(self.norm2(x), self.fc1, self.fc2)

    def move(self, features: Tensor) -> Tensor:
        """Features after their learnt offset."""
        return features + _leaky(self.offset(features))

    def graph_features(self, moved: Tensor, features: Tensor) -> Tensor:
        """Adaptive deformable graph convolution: max over the neighbours j of LeakyReLU(BN(W [moved_i ; f_j - moved_i])).

        W = [W_a W_b] splits into (W_a - W_b) moved_i + W_b f_j: two products a point in place of one a neighbour. Where
        the norm is a constant factor, everything after the sum grows with it, so the maximum is taken on W_b f_j alone.
        """
        index = nearest_features(features, moved, self.num_neighbours)
        if self.edge.is_affine:
            weight, bias = self.edge.affine()
            own, other = weight.chunk(2, dim=1)
            neighbours = gather_points(F.linear(features, other), index).amax(2)
            return _leaky(F.linear(moved, own - other, bias) + neighbours)
        own, other = self.edge.linear.weight.chunk(2, dim=1)
        edges = gather_points(F.linear(features, other), index) + F.linear(moved, own - other).unsqueeze(2)  # B, N, k, C
        return _leaky(normalised(edges, self.edge[1])).amax(2)


def affine_basis(u: Tensor, power: Tensor | float, signed: bool = True) -> Tensor:
    """T(u) = sign(u)^s (|u| + 1e-6)^p with s = 1 (0 for not `signed`) and sign(0) = 0, in float32 or better."""
    u = u.float() if u.dtype in (torch.float16, torch.bfloat16) else u
    size = (u.abs() + 1e-6) ** power
    return u.sign() * size if signed else size


class _Bounded(torch.autograd.Function):
    """Values clamped; gradients pass unless a step along them would lead further out.

    A plain clamp passes none outside: a power starts at its lower bound, and one step (or weight decay) below would fix it there.
    """

    @staticmethod
    def forward(context: Any, values: Tensor, low: float, high: float) -> Tensor:
        context.save_for_backward(values)
        context.bounds = low, high
        return values.clamp(low, high)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (values,), (low, high) = context.saved_tensors, context.bounds
        outwards = ((values < low) & (gradient > 0)) | ((values > high) & (gradient < 0))
        return gradient.masked_fill(outwards, 0), None, None


def bounded_power(p: Tensor) -> Tensor:
    """The learnt power as it is used: 1 to 3, so that |u|^p has a finite gradient at 0."""
    return _Bounded.apply(p, 1.0, 3.0)


class StructureScale(nn.Module):
    """One radius of the local structure fitting: max of a flat term plus max of a power term over the neighbours.

    The bias of the norm of `value` has no effect, for values only enter as differences; it is part of the layout.

    Args:
        in_dim, out_dim: channels.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.low = LinearNorm(in_dim, out_dim)
        self.value = LinearNorm(in_dim, out_dim)
        self.geo1 = LinearNorm(10, 16)
        self.geo2 = nn.Linear(16, out_dim)
        self.bn = nn.BatchNorm1d(out_dim)
        self.p = nn.Parameter(torch.ones(1))

    def forward(self, features: Tensor, points: Tensor, centres: Tensor, index: Tensor) -> Tensor:
        """features: B, N, C; points: B, N, 3; centres: B, M; index: B, M, k; both index points -> B, M, C'."""
        low = gather_points(F.relu(self.low(features)), index).amax(2)
        values = self.value(features)
        differences = gather_points(values, index) - gather_points(values, centres).unsqueeze(2)  # B, M, k, C'
        hidden = F.relu(self.geo1(_geometry(points, centres, index)))
        power = bounded_power(self.p)
        if self.bn.training:
            terms = affine_basis(self.geo2(hidden) * differences, power)
            return low + F.relu(normalised(terms, self.bn)).amax(2)
        # T grows with u and so does the norm where its factor is positive: one power a centre, not one a neighbour
        factor, shift = norm_factor(self.bn)
        sign = torch.where(factor < 0, -1.0, 1.0).to(factor.dtype)
        weights = F.linear(hidden, self.geo2.weight * sign[:, None], self.geo2.bias * sign)
        largest = (weights * differences).amax(2) * sign
        return low + F.relu(affine_basis(largest, power) * factor + shift)


def _geometry(points: Tensor, centres: Tensor, index: Tensor) -> Tensor:
    """[p_i, p_j, p_j - p_i, |p_j - p_i|] of each centre i and neighbour j: B, M, k, 10."""
    near = gather_points(points, index)
    centre = gather_points(points, centres).unsqueeze(2).expand_as(near)
    difference = near - centre
    return torch.cat([centre, near, difference, difference.norm(dim=-1, keepdim=True)], dim=-1)


class StructureFitting(nn.Module):
    """LSFConv: `StructureScale` at several radii, fused. Features of N points -> features of M centres.

    Args:
        in_dim, out_dim: channels.
        radii, num_samples: of the balls, in the unit of the points.
    """

    def __init__(self, in_dim: int, out_dim: int, radii: Sequence[float] = RADII, num_samples: Sequence[int] = NUM_SAMPLES) -> None:
        super().__init__()
        self.radii, self.num_samples = tuple(radii), tuple(num_samples)
        self.scales = nn.ModuleList(StructureScale(in_dim, out_dim) for _ in radii)
        self.fuse = LinearNorm(len(self.scales) * out_dim, out_dim)

    def forward(self, features: Tensor, points: Tensor, centres: Tensor) -> Tensor:
        """features: B, N, C; points: B, N, 3; centres: B, M, indices of points -> B, M, C'."""
        balls = ball_queries(points, gather_points(points, centres), self.radii, self.num_samples)
        fitted = [scale(features, points, centres, index) for scale, index in zip(self.scales, balls, strict=True)]
        return F.relu(self.fuse(torch.cat(fitted, dim=-1)))


class Stage(nn.Module):
    """GPS block: global perception of all points, then local structure at the centres."""

    def __init__(
        self, in_dim: int, out_dim: int, num_neighbours: int, num_heads: int, radii: Sequence[float], num_samples: Sequence[int]
    ) -> None:
        super().__init__()
        self.gpm = GlobalPerception(in_dim, num_neighbours, num_heads)
        self.lsf = StructureFitting(in_dim, out_dim, radii, num_samples)

    def forward(self, features: Tensor, points: Tensor, centres: Tensor) -> Tensor:
        """features: B, N, C; points: B, N, 3; centres: B, M -> B, M, C'."""
        return self.lsf(self.gpm(features), points, centres)


class GPSEncoder(nn.Module):
    """Stem, blocks and final global perception: what classification and part segmentation have in common.

    Args:
        stem_dim: width of the stem.
        widths: one a block; each block halves the points.
        num_neighbours, num_heads: of `GlobalPerception`.
        radii, num_samples: of `StructureFitting`; radii are for clouds in the unit sphere.

    Raises:
        InputError: for sizes that are not possible.
    """

    def __init__(
        self,
        stem_dim: int,
        widths: Sequence[int],
        num_neighbours: int,
        num_heads: int,
        radii: Sequence[float],
        num_samples: Sequence[int],
    ) -> None:
        super().__init__()
        dims = [stem_dim, *widths]
        _check_options(dims, num_neighbours, num_heads, radii, num_samples)
        self.min_points, self.radii = 2 ** len(widths), tuple(radii)
        self.stem = LinearNorm(3, stem_dim)
        self.stages = nn.ModuleList(
            Stage(before, after, num_neighbours, num_heads, radii, num_samples) for before, after in itertools.pairwise(dims)
        )
        self.final = GlobalPerception(dims[-1], num_neighbours, num_heads)

    def forward_features(self, points: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Coordinates B, N_i, 3 and features B, N_i, C_i of each level, the full cloud first.

        Args:
            points: B, N, 3 in the unit sphere (the radii are absolute), N at least 2 a block multiplied up (8 for three).

        Raises:
            InputError: for another shape, too few points, and NaN.
        """
        check_cloud(points, self.min_points)
        levels = [(points, F.relu(self.stem(points)))]
        # Sampling what was sampled gives its first half: all levels are prefixes of one sampling.
        centres = farthest_points(points, points.shape[1] // 2)
        _warn_of_lonely_points(points, centres, self.radii)
        for stage in self.stages:
            points, features = levels[-1]
            centres = centres[:, : points.shape[1] // 2]
            features = stage(features, points, centres)
            levels.append((gather_points(points, centres), features))
            centres = torch.arange(features.shape[1] // 2, device=points.device).expand(len(points), -1)
        points, features = levels.pop()
        return [*levels, (points, self.final(features))]


def _warn_of_lonely_points(points: Tensor, centres: Tensor, radii: Sequence[float]) -> None:
    """Warns where most balls would hold one point: a cloud in millimetres, say."""
    if points.is_meta or torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return
    widest = max(radii)
    first_two = ball_query(points, gather_points(points, centres[:, :64]), widest, 2)  # samples far apart stand for all
    alone = float((first_two[..., 0] == first_two[..., 1]).float().mean())
    if alone > 0.5:
        size = float(points.detach().abs().max())
        warnings.warn(
            f"{alone:.0%} of the balls of radius {widest:g} hold a single point: clouds must be centred, scaled to the unit sphere"
            f" (here coordinates reach {size:.3g}) and dense",
            stacklevel=3,
        )


def _check_options(dims: Sequence[int], num_neighbours: int, num_heads: int, radii: Sequence[float], num_samples: Sequence[int]) -> None:
    if len(dims) < 2 or min(dims) < 1 or num_heads < 1 or any(dim % num_heads for dim in dims):
        raise InputError(f"stem_dim and widths must be multiples of num_heads = {num_heads}, with a width a block; got {list(dims)}")
    if num_neighbours < 1:
        raise InputError(f"num_neighbours must be 1 or more; got {num_neighbours}")
    if not radii or len(radii) != len(num_samples) or min(radii) <= 0 or min(num_samples) < 1:
        raise InputError(f"radii (above 0) and num_samples (1 or more) must be of one length; got {list(radii)} and {list(num_samples)}")


class GPSFormer(GPSEncoder):
    """GPSFormer for classification: points B, N, 3 -> logits B, K. A reconstruction; see the module.

    Not invariant to the order of points: sampling starts at the first one, and a full ball keeps the first in order.

    Args:
        num_classes: K.
        stem_dim, widths, num_neighbours, num_heads, radii, num_samples: see `GPSEncoder`.
        head_dims: widths of the classifier's hidden layers.
        dropout: after each of them, 0 to 1.
    """

    def __init__(
        self,
        *,
        num_classes: int = 15,
        stem_dim: int = 32,
        widths: Sequence[int] = (64, 128, 256),
        num_neighbours: int = 20,
        num_heads: int = 4,
        radii: Sequence[float] = RADII,
        num_samples: Sequence[int] = NUM_SAMPLES,
        head_dims: Sequence[int] = (256, 128),
        dropout: float = 0.5,
    ) -> None:
        super().__init__(stem_dim, widths, num_neighbours, num_heads, radii, num_samples)
        if not head_dims or min(head_dims) < 1:
            raise InputError(f"head_dims must be one or more positive widths; got {list(head_dims)}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1); got {dropout}")
        dims = [2 * widths[-1], *head_dims]
        self.head = nn.ModuleList(LinearNorm(before, after) for before, after in itertools.pairwise(dims))
        self.dropout, self.hidden_dim = dropout, head_dims[-1]
        self.reset_head(num_classes)

    def reset_head(self, num_classes: int) -> None:
        """A new last layer for another number of classes."""
        if num_classes < 1:
            raise InputError(f"num_classes must be 1 or more; got {num_classes}")
        self.num_classes = num_classes
        self.out = nn.Linear(self.hidden_dim, num_classes, device=self.stem.linear.weight.device)

    def forward(self, points: Tensor) -> Tensor:
        """points: B, N, 3, see `forward_features` -> logits B, K."""
        features = self.forward_features(points)[-1][1]
        return self.forward_head(torch.cat([features.amax(1), features.mean(1)], dim=-1))

    def forward_head(self, pooled: Tensor) -> Tensor:
        """pooled: B, 2C, maximum and mean over the points -> logits B, K."""
        for layer in self.head:
            pooled = F.dropout(F.relu(layer(pooled)), self.dropout, self.training)
        return self.out(pooled)


def infer_encoder(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Widths of the encoder from the shapes of its tensors."""
    numbers = range(len({name.split(".")[1] for name in state if name.startswith("stages.")}))
    return {
        "stem_dim": int(state["stem.0.weight"].shape[0]),
        "widths": [int(state[f"stages.{i}.lsf.fuse.0.weight"].shape[0]) for i in numbers],
    }


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    numbers = range(len({name.split(".")[1] for name in state if name.startswith("head.")}))
    return infer_encoder(state) | {
        "num_classes": int(state["out.weight"].shape[0]),
        "head_dims": [int(state[f"head.{i}.0.weight"].shape[0]) for i in numbers],
    }


ASSUMED = {"num_neighbours": 20, "num_heads": 4, "radii": RADII, "num_samples": NUM_SAMPLES}
PAPER = (
    "GPSFormer: A Global Perception and Local Structure Fitting-based Transformer for Point Cloud Understanding, Wang et al., ECCV 2024,"
    " arXiv 2407.13519"
)
LICENCE = "no official code or weights; this reconstruction Apache-2.0"

LAYOUT = PublishedLayout(
    build=GPSFormer,
    infer=_infer,
    keys=("stages.0.gpm.edge.0.weight", "stages.0.lsf.fuse.0.weight", "head.1.0.weight", "out.weight"),
    assumed=ASSUMED,
    head="out.",
)

# Trained on simulated solids; see the card beside it.
SHIPPED = {"gpsformer_solids": Path(__file__).parents[1] / "weights" / "gpsformer_solids.safetensors"}
VARIANTS = {
    "gpsformer": Variant(
        {},
        "GPSFormer for shape classification, a reconstruction from the paper (no official code): 2.38 M parameters.",
        (
            PublishedResult("ScanObjectNN PB_T50_RS", "overall accuracy", 95.4, "%"),
            PublishedResult("ScanObjectNN PB_T50_RS", "mean class accuracy", 93.8, "%"),
            PublishedResult("ModelNet40", "overall accuracy", 94.2, "%"),
            PublishedResult("ScanObjectNN few-shot, 5-way 10-shot", "overall accuracy", 89.3, "%"),
        ),
        input_size=(1024, 3),
    ),
    "gpsformer_elite": Variant(
        {"stem_dim": 16, "widths": (32, 64, 128)},
        "GPSFormer-elite for shape classification, a reconstruction from the paper (no official code): 0.67 M parameters.",
        (
            PublishedResult("ScanObjectNN PB_T50_RS", "overall accuracy", 93.3, "%"),
            PublishedResult("ScanObjectNN PB_T50_RS", "mean class accuracy", 92.5, "%"),
        ),
        input_size=(1024, 3),
        weights=SHIPPED,
    ),
}

register_variants(GPSFormer, VARIANTS, system="gpsformer", task="shape classification", paper=PAPER, licence=LICENCE, layout=LAYOUT)
