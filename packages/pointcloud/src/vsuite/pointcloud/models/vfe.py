"""Dynamic voxel feature encoding: a small PointNet over the points of each voxel (Zhou et al., 2019), without a limit on their number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.core.nn import fold_batch_norm
from vsuite.pointcloud.voxels import PointCloudRange, VoxelSize, grid_size, voxelize

POINTS_AT_ONCE = 16384  # at inference, so that what is made for each point stays in the cache


class VFELayer(nn.Module):
    """Linear without bias, batch norm, ReLU on each point; a bias exists once folded."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels, bias=False)
        self.norm: nn.Module = nn.BatchNorm1d(out_channels, eps=1e-3, momentum=0.01)

    def forward(self, x: Tensor) -> Tensor:
        """P, C -> P, C'."""
        x = self.linear(x)
        if self.training and len(x) < 2:  # one point has no variance; batch norm would refuse it
            return F.relu(_normalise(x, self.norm))
        return F.relu(self.norm(x))

    def fold(self) -> None:
        if isinstance(self.norm, nn.BatchNorm1d):
            fold_batch_norm(self.linear, self.norm)
            self.norm = nn.Identity()


def _normalise(x: Tensor, norm: nn.Module) -> Tensor:
    """A batch norm by its running statistics."""
    assert isinstance(norm, nn.BatchNorm1d)
    return F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=norm.eps)


class DynamicVFE(nn.Module):
    """Points -> features of the voxels that hold them.

    Each point is described by its own columns, its offset from the mean of the points of its voxel and its offset from
    the centre of its voxel. Every layer but the last hands each point its own features beside the largest ones of its voxel.

    Args:
        in_channels: columns of a point; x, y, z in metres come first.
        feat_channels: widths of the layers; the last is the width of the voxels' features.
        voxel_size, point_cloud_range: see `vsuite.pointcloud.voxels`.
        with_cluster_center, with_voxel_center: use the offset from the mean, from the centre.
    """

    def __init__(
        self,
        *,
        in_channels: int = 5,
        feat_channels: Sequence[int] = (64, 128),
        voxel_size: VoxelSize = (0.32, 0.32, 6.0),
        point_cloud_range: PointCloudRange = (-74.88, -74.88, -2.0, 74.88, 74.88, 4.0),
        with_cluster_center: bool = True,
        with_voxel_center: bool = True,
    ) -> None:
        super().__init__()
        grid_size(voxel_size, point_cloud_range)
        if in_channels < 3:
            raise InputError(f"in_channels must be 3 or more (x, y, z come first); got {in_channels}")
        if not feat_channels or min(feat_channels) < 1:
            raise InputError(f"feat_channels must be one or more positive numbers; got {list(feat_channels)}")
        self.in_channels = in_channels
        self.voxel_size = tuple(voxel_size)
        self.point_cloud_range = tuple(point_cloud_range)
        self.with_cluster_center = with_cluster_center
        self.with_voxel_center = with_voxel_center
        width = in_channels + 3 * with_cluster_center + 3 * with_voxel_center
        # A layer reads the features of the point and of its voxel, twice the width of the layer before.
        widths = [width, *(2 * channels for channels in feat_channels[:-1])]
        self.vfe_layers = nn.ModuleList(map(VFELayer, widths, feat_channels))

    def forward(self, points: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """points: P_i, in_channels a sample -> features N, C in float32 and voxels N, 4 (b z y x, ascending)."""
        with torch.autocast(points[0].device.type, enabled=False):  # half precision overflows here: metres are squared in the statistics
            points = [sample.float() for sample in points]
            coordinates, index = voxelize(points, self.voxel_size, self.point_cloud_range)
            described = self._describe(torch.cat(points), coordinates, index)
            folded = all(isinstance(layer.norm, nn.Identity) for layer in self.layers())
            encode = self._encode_folded if folded else self._encode
            return encode(described, index, len(coordinates)), coordinates

    def layers(self) -> Iterator[VFELayer]:
        for layer in self.vfe_layers:
            assert isinstance(layer, VFELayer)
            yield layer

    def _describe(self, points: Tensor, coordinates: Tensor, index: Tensor) -> Tensor:
        xyz, parts = points[:, :3], [points]
        if self.with_cluster_center:
            count = torch.bincount(index, minlength=len(coordinates)).unsqueeze(1)
            mean = xyz.new_zeros(len(coordinates), 3).index_add_(0, index, xyz) / count
            parts.append(xyz - mean[index])
        if self.with_voxel_center:
            size, lower = xyz.new_tensor(self.voxel_size), xyz.new_tensor(self.point_cloud_range[:3])
            centre = coordinates[:, 1:].flip(1) * size + size / 2 + lower
            parts.append(xyz - centre[index])
        return torch.cat(parts, dim=1)

    def _encode(self, x: Tensor, index: Tensor, num_voxels: int) -> Tensor:
        *first, last = self.layers()
        for layer in first:
            x = layer(x)
            x = torch.cat([x, voxel_max(x, index, num_voxels)[index]], dim=1)
        return voxel_max(last(x), index, num_voxels)

    def _encode_folded(self, x: Tensor, index: Tensor, num_voxels: int) -> Tensor:
        """The same without the wide arrays of a row a point.

        All points of a voxel share the second half of what a later layer reads, so its product can be added after the
        maximum, once a voxel: max relu(A point + B voxel) = relu(max(A point) + B voxel). What is made for each point is
        made anew for each layer, a few points at a time.
        """
        shared: list[Tensor] = []  # for each layer, what its voxels add
        largest = x.new_zeros(num_voxels, 0)
        layers = list(self.layers())
        for depth, layer in enumerate(layers):
            voxel_weight = layer.linear.weight[:, layer.linear.in_features - largest.shape[1] :]
            shared.append(F.linear(largest, voxel_weight, layer.linear.bias))
            largest = x.new_full((num_voxels, layer.linear.out_features), -torch.inf)
            for part, rows in zip(x.split(POINTS_AT_ONCE), index.split(POINTS_AT_ONCE), strict=True):
                own = part
                for before, voxels in zip(layers[:depth], shared, strict=False):
                    own = F.linear(own, before.linear.weight[:, : own.shape[1]]).add_(voxels[rows]).relu_()
                own = F.linear(own, layer.linear.weight[:, : own.shape[1]])
                largest.scatter_reduce_(0, rows.unsqueeze(1).expand_as(own), own, "amax")
            largest = largest.add_(shared[-1]).relu_()
        return largest


def voxel_max(x: Tensor, index: Tensor, num_voxels: int) -> Tensor:
    """The largest value of each voxel's points, by channel: P, C with the voxel of each point -> N, C. x is 0 or more.

    Points that are equally large each get the gradient.
    """
    return _VoxelMax.apply(x, index, num_voxels)


class _VoxelMax(torch.autograd.Function):
    """torch's own gradient of the scattered maximum takes six times as long as this one, on a CPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, num_voxels: int) -> Tensor:
        largest = x.new_zeros(num_voxels, x.shape[1]).scatter_reduce_(0, index.unsqueeze(1).expand_as(x), x, "amax")
        ctx.save_for_backward(x, index, largest)
        return largest

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, index, largest = ctx.saved_tensors
        return grad[index] * (x == largest[index]), None, None
