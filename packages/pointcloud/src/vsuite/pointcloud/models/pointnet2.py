"""PointNet++ with single-scale grouping for shape classification (Qi et al., NeurIPS 2017): the baseline of the shape networks.

Names of parameters are those of the common PyTorch implementation (yanx27/Pointnet_Pointnet2_pytorch), whose weights load.
Sampling starts at the first point, there at a random one. The radii are for clouds in the unit sphere.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, PublishedLayout, PublishedResult, register_model
from vsuite.core.nn import fold_batch_norm
from vsuite.pointcloud.models.point_layers import check_cloud, normalised
from vsuite.pointcloud.point_ops import ball_query, farthest_points, gather_points


class SetAbstraction(nn.Module):
    """A small PointNet on the ball of each sampled point, or on the whole cloud. Points with features -> fewer of them.

    Args:
        num_centres: points that remain; None: one for the whole cloud.
        radius, num_samples: of the balls.
        in_dim: 3 for the coordinates and the channels of the features.
        widths: of the layers; the last is the width of the result.
    """

    def __init__(self, num_centres: int | None, radius: float, num_samples: int, in_dim: int, widths: Sequence[int]) -> None:
        super().__init__()
        self.num_centres, self.radius, self.num_samples = num_centres, radius, num_samples
        dims = [in_dim, *widths]
        self.mlp_convs = nn.ModuleList(nn.Conv2d(before, after, 1) for before, after in itertools.pairwise(dims))
        self.mlp_bns: nn.ModuleList = nn.ModuleList(nn.BatchNorm2d(width) for width in widths)

    def forward(self, points: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """points: B, N, 3; features: B, N, C -> B, M, 3 and B, M, C'."""
        centres, x = self._first_layer(points, features)
        for number, norm in enumerate(self.mlp_bns):
            if number:
                x = F.linear(x, *self._matrix(number))
            x = F.relu(normalised(x, norm))
        return centres, x.amax(2)

    def _matrix(self, number: int) -> tuple[Tensor, Tensor | None]:
        """A 1 x 1 convolution's weight as a matrix, and its bias."""
        conv = self.mlp_convs[number]
        assert isinstance(conv, nn.Conv2d)
        return conv.weight.flatten(1), conv.bias

    def _first_layer(self, points: Tensor, features: Tensor | None) -> tuple[Tensor, Tensor]:
        """Centres B, M, 3, and what the first layer makes of each neighbour: B, M, k, C.

        What it makes of the features of a point is the same for all balls, so it is computed once a point.
        """
        weight, bias = self._matrix(0)
        if self.num_centres is None:
            joined = points if features is None else torch.cat([points, features], dim=-1)
            return torch.zeros_like(points[:, :1]), F.linear(joined, weight, bias).unsqueeze(1)
        centres = gather_points(points, farthest_points(points, min(self.num_centres, points.shape[1])))
        index = ball_query(points, centres, self.radius, self.num_samples)
        x = F.linear(gather_points(points, index) - centres.unsqueeze(2), weight[:, :3], bias)
        return centres, x if features is None else x + gather_points(F.linear(features, weight[:, 3:]), index)

    def fold(self) -> None:
        for i, (conv, norm) in enumerate(zip(self.mlp_convs, self.mlp_bns, strict=True)):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fold_batch_norm(conv, norm)
                self.mlp_bns[i] = nn.Identity()


class PointNet2(nn.Module):
    """PointNet++ (SSG) for classification: points B, N, 3 or 6 -> logits B, K.

    Args:
        num_classes: K.
        in_channels: 3 (x, y, z) or more (normals after them make 6).
        dropout: after each hidden layer of the classifier, 0 to 1.
    """

    def __init__(self, *, num_classes: int = 40, in_channels: int = 3, dropout: float = 0.4) -> None:
        super().__init__()
        if in_channels < 3:
            raise InputError(f"in_channels must be 3 or more, x, y and z first; got {in_channels}")
        if not 0 <= dropout < 1:
            raise InputError(f"dropout must lie in [0, 1); got {dropout}")
        self.in_channels, self.dropout = in_channels, dropout
        self.sa1 = SetAbstraction(512, 0.2, 32, in_channels, (64, 64, 128))
        self.sa2 = SetAbstraction(128, 0.4, 64, 128 + 3, (128, 128, 256))
        self.sa3 = SetAbstraction(None, 0.0, 0, 256 + 3, (256, 512, 1024))
        self.fc1 = nn.Linear(1024, 512)
        self.bn1: nn.Module = nn.BatchNorm1d(512)
        self.fc2 = nn.Linear(512, 256)
        self.bn2: nn.Module = nn.BatchNorm1d(256)
        self.reset_head(num_classes)

    def reset_head(self, num_classes: int) -> None:
        """A new last layer for another number of classes."""
        if num_classes < 1:
            raise InputError(f"num_classes must be 1 or more; got {num_classes}")
        self.num_classes = num_classes
        self.fc3 = nn.Linear(256, num_classes, device=self.fc2.weight.device)

    def forward(self, points: Tensor) -> Tensor:
        """points: B, N, in_channels, coordinates first and in the unit sphere -> logits B, K.

        Raises:
            InputError: for another shape, and NaN.
        """
        check_cloud(points, 1, self.in_channels)
        coordinates, features = points[..., :3], points[..., 3:] if self.in_channels > 3 else None
        coordinates, x = self.sa1(coordinates, features)
        coordinates, x = self.sa2(coordinates, x)
        x = self.sa3(coordinates, x)[1].squeeze(1)
        for layer, norm in ((self.fc1, self.bn1), (self.fc2, self.bn2)):
            x = F.dropout(F.relu(normalised(layer(x), norm)), self.dropout, self.training)
        return self.fc3(x)

    def fold(self) -> None:
        if isinstance(self.bn1, nn.BatchNorm1d) and isinstance(self.bn2, nn.BatchNorm1d):
            fold_batch_norm(self.fc1, self.bn1)
            fold_batch_norm(self.fc2, self.bn2)
            self.bn1, self.bn2 = nn.Identity(), nn.Identity()


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"num_classes": int(state["fc3.weight"].shape[0]), "in_channels": int(state["sa1.mlp_convs.0.weight"].shape[1])}


LAYOUT = PublishedLayout(
    build=PointNet2, infer=_infer, keys=("sa1.mlp_convs.0.weight", "sa3.mlp_convs.2.weight", "fc3.weight"), head="fc3."
)

# Trained on simulated solids; see the card beside it.
SHIPPED = {"pointnet2_solids": Path(__file__).parents[1] / "weights" / "pointnet2_solids.safetensors"}


@register_model(
    system="pointnet2",
    task="shape classification",
    layout=LAYOUT,
    weights=SHIPPED,
    input_size=(1024, 3),
    paper="PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space, Qi et al., NeurIPS 2017, arXiv 1706.02413",
    licence="MIT (official code, and the common PyTorch implementation)",
    published=(PublishedResult("ModelNet40", "overall accuracy", 90.7, "%"),),
)
def pointnet2(*, num_classes: int = 40, in_channels: int = 3, dropout: float = 0.4) -> PointNet2:
    """PointNet++ with single-scale grouping for shape classification: the baseline, 1.48 M parameters."""
    return PointNet2(**locals())
