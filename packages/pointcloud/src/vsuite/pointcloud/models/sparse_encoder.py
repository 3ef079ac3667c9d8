"""The sparse-convolutional encoder of SECOND and CenterPoint, with residual blocks: voxels -> bird's-eye-view map.

Names are those of mmdetection3d's `SparseEncoder` (block type "basicblock", the `VoxelResBackBone8x` of OpenPCDet).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.pointcloud.nn.sparse_conv import SparseConv3d, SparseModule, SubMConv3d
from vsuite.pointcloud.nn.sparse_layers import SparseBatchNorm, SparseSequential, fold_sparse
from vsuite.pointcloud.nn.sparse_tensor import SparseTensor
from vsuite.pointcloud.voxels import voxelize


def _norm(channels: int) -> SparseBatchNorm:
    return SparseBatchNorm(channels, eps=1e-3, momentum=0.01)


class SparseBasicBlock(SparseModule):
    """Two submanifold 3 x 3 x 3 convolutions and a shortcut, on the same cells."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = SubMConv3d(channels, channels, bias=False)
        self.bn1: nn.Module = _norm(channels)
        self.conv2 = SubMConv3d(channels, channels, bias=False)
        self.bn2: nn.Module = _norm(channels)

    def forward(self, x: SparseTensor) -> SparseTensor:
        y = x.replace_feature(F.relu(self.bn1(self.conv1(x).features), inplace=True))
        return x.replace_feature(F.relu(self.bn2(self.conv2(y).features) + x.features, inplace=True))

    def fold(self) -> None:
        for conv, name in ((self.conv1, "bn1"), (self.conv2, "bn2")):
            norm = getattr(self, name)
            if isinstance(norm, nn.BatchNorm1d):
                fold_sparse(conv, norm)
                setattr(self, name, nn.Identity())


def _unit(conv: SubMConv3d | SparseConv3d) -> SparseSequential:
    return SparseSequential(conv, _norm(conv.out_channels), nn.ReLU(inplace=True))


class SparseEncoder(nn.Module):
    """Stages of residual blocks, each but the last followed by a convolution of stride 2; the height that is left becomes channels.

    Args:
        in_channels: of a voxel.
        sparse_shape: cells along z, y, x; as published one more along z than the voxels fill.
        encoder_channels: of each stage; the map has stride 2^(stages - 1).
        blocks: of each stage.
        output_channels: of each cell left along z.

    Attributes:
        out_channels: of the map: output_channels times the cells left along z.
        stride: voxels of a cell of the map along x and along y.
    """

    def __init__(
        self,
        *,
        in_channels: int = 5,
        sparse_shape: Sequence[int] = (41, 1024, 1024),
        encoder_channels: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 2,
        output_channels: int = 128,
    ) -> None:
        super().__init__()
        if len(encoder_channels) < 2 or min(in_channels, output_channels, blocks, *encoder_channels) < 1:
            raise InputError(
                "the sparse encoder takes 2 stages or more and positive numbers of channels and blocks; got"
                f" encoder_channels {list(encoder_channels)}, in_channels {in_channels}, output_channels {output_channels}, blocks {blocks}"
            )
        self.sparse_shape = tuple(sparse_shape)
        self.stride = 2 ** (len(encoder_channels) - 1)
        self.out_channels = output_channels * _depth_left(self.sparse_shape[0], len(encoder_channels))
        self.conv_input = _unit(SubMConv3d(in_channels, encoder_channels[0], bias=False))
        self.encoder_layers = SparseSequential()
        for i, channels in enumerate(encoder_channels, start=1):
            stage = SparseSequential(*(SparseBasicBlock(channels) for _ in range(blocks)))
            if i < len(encoder_channels):
                # The last of these has no padding along z, as published: there the grid has a cell to spare.
                padding = (0, 1, 1) if i == len(encoder_channels) - 1 else 1
                stage.append(_unit(SparseConv3d(channels, encoder_channels[i], 3, 2, padding, bias=False)))
            self.encoder_layers.add_module(f"encoder_layer{i}", stage)
        self.conv_out = _unit(SparseConv3d(encoder_channels[-1], output_channels, (3, 1, 1), (2, 1, 1), 0, bias=False))

    def forward(self, features: Tensor, coordinates: Tensor, batch_size: int) -> Tensor:
        """N, in_channels and N, 4 (b z y x) -> B, out_channels, H, W with H = ceil(y / stride), W = ceil(x / stride).

        The map is channels-last in memory. Channel c of the cell z is channel c * depth + z of the map.
        """
        x = SparseTensor(features, coordinates, self.sparse_shape, batch_size)
        x = self.conv_out(self.encoder_layers(self.conv_input(x)))
        depth, height, width = x.spatial_shape
        bev = x.features.new_zeros(batch_size, height, width, x.features.shape[1], depth)
        b, z, row, column = x.coordinates.unbind(1)
        bev[b, row, column, :, z] = x.features
        return bev.flatten(3).permute(0, 3, 1, 2)


def _depth_left(depth: int, stages: int) -> int:
    """Cells along z of the map before they become channels."""
    left = depth
    for i in range(1, stages):
        left = (left - 3 + (0 if i == stages - 1 else 2)) // 2 + 1
    left = (left - 3) // 2 + 1
    if left < 1:
        least = 2 ** (stages - 2) * 6 + 1
        raise InputError(f"{stages} stages need {least} cells or more along z ({least - 1} voxels and one to spare); got {depth}")
    return left


class DynamicSimpleVFE(nn.Module):
    """The mean of the points of each voxel (mmdetection3d's name; `HardSimpleVFE` without its limit of points a voxel).

    Args:
        voxel_size, point_cloud_range: see `vsuite.pointcloud.voxels`.
    """

    def __init__(self, voxel_size: Sequence[float], point_cloud_range: Sequence[float]) -> None:
        super().__init__()
        self.voxel_size, self.point_cloud_range = tuple(voxel_size), tuple(point_cloud_range)

    def forward(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """P_i, C a sample -> means N, C in float32 and voxels N, 4 (b z y x, ascending)."""
        coordinates, index = voxelize(points, self.voxel_size, self.point_cloud_range)
        flat = torch.cat(list(points)).float()
        total = flat.new_zeros(len(coordinates), flat.shape[1]).index_add_(0, index, flat)
        return total / torch.bincount(index, minlength=len(coordinates)).unsqueeze(1), coordinates
