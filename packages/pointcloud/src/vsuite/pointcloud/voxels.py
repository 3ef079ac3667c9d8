"""Points -> voxels -> bird's-eye-view maps.

Voxels are rows `b z y x` of int64: sample, then cell along each axis from the lower end of the range. They are listed in
ascending order of these four numbers, so the voxels of a sample are contiguous.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from vsuite.core.errors import InputError

VoxelSize = Sequence[float]  # x, y, z in metres
PointCloudRange = Sequence[float]  # x, y, z lower ends, then upper ends, in metres


def grid_size(voxel_size: VoxelSize, point_cloud_range: PointCloudRange) -> tuple[int, int, int]:
    """Cells along x, y and z; the last one reaches beyond the range where the range is no multiple of the voxel size.

    Raises:
        InputError: for sizes that are not positive, a range without extent, and lists of another length.
    """
    if len(voxel_size) != 3 or len(point_cloud_range) != 6:
        raise InputError(
            f"voxel_size takes 3 numbers (x y z) and point_cloud_range 6 (lower x y z, upper x y z); got {list(voxel_size)} and"
            f" {list(point_cloud_range)}"
        )
    numbers = (*voxel_size, *point_cloud_range)
    if not all(math.isfinite(number) for number in numbers) or min(voxel_size) <= 0:
        raise InputError(f"voxel_size must be positive and the range finite; got {list(voxel_size)} and {list(point_cloud_range)}")
    extents = [upper - lower for lower, upper in zip(point_cloud_range[:3], point_cloud_range[3:], strict=True)]
    if min(extents) <= 0:
        raise InputError(f"point_cloud_range must grow along x, y and z; got {list(point_cloud_range)}")
    # A thousandth of a cell is rounding: 149.76 / 0.32 is 468.00000000000006.
    nx, ny, nz = (max(1, math.ceil(extent / size - 1e-3)) for extent, size in zip(extents, voxel_size, strict=True))
    return nx, ny, nz


def check_points(points: Sequence[Tensor], in_channels: int) -> None:
    """Raises `InputError`, naming the sample, for points of another rank, type or number of columns, and for NaN or infinite values."""
    for i, sample in enumerate(points):
        if sample.ndim != 2 or sample.shape[1] != in_channels:
            raise InputError(f"sample {i}: points are rows of {in_channels} numbers; got an array of {' x '.join(map(str, sample.shape))}")
        if not sample.is_floating_point():
            raise InputError(f"sample {i}: points are floating-point numbers; got {sample.dtype}")
        if not bool(sample.isfinite().all()):
            bad = int((~sample.isfinite().all(1)).sum())
            raise InputError(f"sample {i}: {bad} of {len(sample)} points have NaN or infinite values")


def inside_range(points: Tensor, point_cloud_range: PointCloudRange) -> Tensor:
    """P: which points (P, 3 or more) lie in the range, lower ends included, upper ends excluded."""
    lower, upper = points.new_tensor(point_cloud_range).chunk(2)
    return ((points[:, :3] >= lower) & (points[:, :3] < upper)).all(1)


def voxel_coordinates(points: Tensor, voxel_size: VoxelSize, point_cloud_range: PointCloudRange) -> Tensor:
    """The cell of each point: P, 3 or more (x y z first) -> P, 3 of int64 (z, y, x).

    Points beyond the range land in its border cells; `inside_range` tells them apart.
    """
    size, lower = points.new_tensor(voxel_size), points.new_tensor(point_cloud_range[:3])
    # Subtract, divide, floor, in this order and precision: a product with the reciprocal moves points across borders.
    cells = ((points[:, :3] - lower) / size).floor()
    largest = cells.new_tensor(grid_size(voxel_size, point_cloud_range)) - 1
    return cells.clamp(min=torch.zeros_like(largest), max=largest).long().flip(1)


def voxelize(points: Sequence[Tensor], voxel_size: VoxelSize, point_cloud_range: PointCloudRange) -> tuple[Tensor, Tensor]:
    """Dynamic voxelisation: every point is kept, a voxel exists where there is a point.

    Args:
        points: one P_i, 3 or more a sample.

    Returns:
        The voxels: N, 4 (b z y x, ascending), and for each point of the batch, sample after sample, the row of its voxel: P.
    """
    nx, ny, nz = grid_size(voxel_size, point_cloud_range)
    sample = torch.cat([torch.full((len(p),), i, device=p.device) for i, p in enumerate(points)])
    z, y, x = voxel_coordinates(torch.cat([p[:, :3] for p in points]), voxel_size, point_cloud_range).unbind(1)
    keys, index = torch.unique(((sample * nz + z) * ny + y) * nx + x, return_inverse=True)
    coordinates = torch.stack([keys // (nx * ny * nz), keys // (nx * ny) % nz, keys // nx % ny, keys % nx], dim=1)
    return coordinates, index


def voxels_per_sample(coordinates: Tensor, batch_size: int) -> list[int]:
    """How many voxels each sample has; a sample may have none."""
    return torch.bincount(coordinates[:, 0], minlength=batch_size).tolist()


def scatter_to_bev(features: Tensor, coordinates: Tensor, batch_size: int, size: tuple[int, int]) -> Tensor:
    """Features of pillars as a map that is zero elsewhere: N, C and N, 4 (b z y x; z is ignored) -> B, C, H, W.

    The map is channels-last in memory.
    """
    height, width = size
    bev = features.new_zeros(batch_size * height * width, features.shape[1])
    b, _, y, x = coordinates.unbind(1)
    bev[(b * height + y) * width + x] = features
    return bev.view(batch_size, height, width, -1).permute(0, 3, 1, 2)
