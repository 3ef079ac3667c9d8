"""FlatFormer: flattened window attention over sparse pillars, and the lidar detector around it (Liu et al., CVPR 2023).

Axes: N voxels, C channels, G tokens of a group, B batch, H W rows (y) and columns (x) of the bird's-eye-view map. Grids and
windows are given as (x, y).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import InputError, PublishedLayout, PublishedResult
from vsuite.core.nn import attend, memoise, perceptron
from vsuite.core.registry import Variant, register_variants
from vsuite.pointcloud.models.center_decode import WAYMO
from vsuite.pointcloud.models.center_head import CenterHead
from vsuite.pointcloud.models.detector import LidarDetector
from vsuite.pointcloud.models.second import SECOND, SECONDFPN
from vsuite.pointcloud.models.vfe import DynamicVFE
from vsuite.pointcloud.voxels import PointCloudRange, VoxelSize, grid_size, scatter_to_bev, voxels_per_sample

ORDERS = ("x", "x_shift", "y", "y_shift")  # of the four layers of a block


def window_orders(coordinates: Tensor, window: tuple[int, int], grid: tuple[int, int]) -> Tensor:
    """The four orders in which windows line up the voxels of each sample: N, 4 (b z y x) -> 4, N in the order of `ORDERS`.

    In the x orders the windows run row by row, every other row backwards, and within a window column by column, every
    other column backwards; the y orders have the axes exchanged. The shifted ones have windows displaced by half their
    size. Entry t of an order is the row of the voxel at place t; samples follow one another.

    Args:
        window, grid: voxels along x and y.
    """
    (wx, wy), (nx, ny) = window, grid
    b, _, y, x = coordinates.unbind(1)
    x, y = torch.stack([x, x + wx // 2]), torch.stack([y, y + wy // 2])  # plain and shifted
    keys = torch.stack([_snake(y, x, wy, wx, nx), _snake(x, y, wx, wy, ny)])  # 2, 2, N
    # One past the largest key. The published offset, 10 * nx * ny, lets the keys of samples overlap on small grids.
    span = 8 * wx * wy * (nx // wx + 3) * (ny // wy + 3)
    return (keys.flatten(0, 1) + b * span).argsort(dim=1)


def _snake(slow: Tensor, fast: Tensor, slow_window: int, fast_window: int, fast_cells: int) -> Tensor:
    """A number that ascends along the path: windows along `fast` in each row of windows, cells along `slow` in a window."""
    row, within_row = slow // slow_window, slow % slow_window
    column, within_column = fast // fast_window, fast % fast_window
    forth_in_row, forth_in_column = 1 - 2 * (row % 2), 1 - 2 * (within_column % 2)
    windows = 2 * (-(-fast_cells // fast_window) + 1) * row + forth_in_row * column
    return windows * (4 * slow_window * fast_window) + forth_in_row * (2 * slow_window * within_column + forth_in_column * within_row)


def inverse_orders(orders: Tensor) -> Tensor:
    """For each order the place of every voxel: the inverse permutations, 4, N."""
    places = torch.arange(orders.shape[1], device=orders.device).expand_as(orders)
    return torch.empty_like(orders).scatter_(1, orders, places)


def group_indices(lengths: Sequence[int], group_size: int) -> tuple[Tensor, Tensor]:
    """The groups as index vectors, as published: `win2flat` (N) and `flat2win` (a multiple of G for each sample).

    `flat2win` names the voxel at each place of the padded groups. Places without one hold the voxels at the same places of the
    group before, so that the last group is made of the last G voxels. A sample of fewer than G voxels is one group of its own size.

    `attend_in_groups` does without them.
    """
    win2flat, flat2win = [], []
    start = padded_start = 0
    for length in lengths:
        size = max(1, min(group_size, length))
        padded = -(-length // size) * size
        places = torch.arange(padded)
        win2flat.append(padded_start + places[:length])
        flat2win.append(start + torch.where(places < length, places, places - size))
        start, padded_start = start + length, padded_start + padded
    return torch.cat(win2flat), torch.cat(flat2win)


def attend_in_groups(query: Tensor, key: Tensor, value: Tensor, num_heads: int, group_size: int, lengths: Sequence[int]) -> Tensor:
    """Attention within groups of `group_size` consecutive tokens of each sample: N, C -> N, C.

    The tokens left over at the end of a sample attend over its last `group_size` tokens. A sample of fewer tokens is one group.

    Args:
        query, key, value: N, C, in one of the orders.
        lengths: tokens of each sample; they add up to N.
    """
    parts = []
    start = 0
    for length in lengths:
        stop = start + length
        if length == 0:
            continue
        size = min(group_size, length)
        rest = length % size
        whole = slice(start, stop - rest)
        q, k, v = (x[whole].unflatten(0, (-1, size)) for x in (query, key, value))
        parts.append(attend(q, k, v, num_heads).flatten(0, 1))
        if rest:
            last = slice(stop - size, stop)
            parts.append(attend(query[None, stop - rest : stop], key[None, last], value[None, last], num_heads)[0])
        start = stop
    return torch.cat(parts) if parts else value


class GroupAttention(nn.Module):
    """Multi-head self-attention within groups; positions are added to queries and keys only."""

    def __init__(self, dim: int, num_heads: int, group_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.group_size = group_size
        self.attn = nn.MultiheadAttention(dim, num_heads)  # holds the weights under their published names; never called

    def forward(self, x: Tensor, position: Tensor, lengths: Sequence[int]) -> Tensor:
        weight, bias = self.attn.in_proj_weight, self.attn.in_proj_bias
        dim = x.shape[1]
        query, key = F.linear(x + position, weight[: 2 * dim], bias[: 2 * dim]).chunk(2, dim=1)
        value = F.linear(x, weight[2 * dim :], bias[2 * dim :])
        return self.attn.out_proj(attend_in_groups(query, key, value, self.num_heads, self.group_size, lengths))


class FlatFormerLayer(nn.Module):
    """Post-norm transformer layer on voxels that are already in order.

    Args:
        dim, num_heads: width, and heads that divide it.
        group_size: tokens of a group.
    """

    def __init__(self, dim: int = 128, num_heads: int = 8, group_size: int = 144) -> None:
        super().__init__()
        self.attn = GroupAttention(dim, num_heads, group_size)
        self.fc1 = nn.Linear(dim, 2 * dim)
        self.fc2 = nn.Linear(2 * dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, lengths: Sequence[int]) -> Tensor:
        """x, position: N, C; lengths: tokens of each sample -> N, C."""
        x = self.norm1(x + self.attn(x, position, lengths))
        return self.norm2(x + perceptron(x, self.fc1, self.fc2))


class FlatFormerBlock(nn.Module):
    """Four layers, one an order."""

    def __init__(self, dim: int = 128, num_heads: int = 8, group_size: int = 144) -> None:
        super().__init__()
        self.block = nn.ModuleList(FlatFormerLayer(dim, num_heads, group_size) for _ in ORDERS)


@memoise
def position_table(
    cells: int, dim: int, temperature: float, normalize: bool, device: torch.device, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Sines and cosines of the coordinates 0 to `cells` - 1 along one axis: cells, dim // 4 * 2."""
    width = dim // 4 * 2
    coordinate = torch.arange(cells, dtype=torch.float64)
    if normalize:
        coordinate = coordinate / cells * 2 * 3.1415  # the published literal, not pi
    channel = torch.arange(width)
    angle = coordinate[:, None] / temperature ** (2 * (channel // 2) / max(width, 1)).double()
    return torch.where(channel % 2 == 0, angle.sin(), angle.cos()).to(device, dtype)


class FlatFormer(nn.Module):
    """Flattened window attention: features of pillars -> a bird's-eye-view map.

    Args:
        in_channels: width of the voxels' features; all layers keep it.
        num_heads, num_blocks: blocks are of four layers each.
        window: voxels of a window along x and y.
        grid: voxels of the range along x and y; the map has as many columns and rows.
        group_size: voxels of a group.
        pos_temperature, normalize_pos: of the position embedding.
    """

    def __init__(
        self,
        *,
        in_channels: int = 128,
        num_heads: int = 8,
        num_blocks: int = 2,
        window: Sequence[int] = (13, 13),
        grid: Sequence[int] = (468, 468),
        group_size: int = 144,
        pos_temperature: float = 10000.0,
        normalize_pos: bool = False,
    ) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("num_heads", num_heads), ("num_blocks", num_blocks), ("group_size", group_size)):
            if value < 1:
                raise InputError(f"{name} must be 1 or more; got {value}")
        if in_channels % num_heads:
            raise InputError(f"the width must be divisible by num_heads; {in_channels} is not by {num_heads}")
        if len(window) != 2 or len(grid) != 2 or min(*window, *grid) < 1:
            raise InputError(f"window and grid are two numbers of 1 or more, along x and y; got {list(window)} and {list(grid)}")
        if pos_temperature <= 0:
            raise InputError(f"pos_temperature must be positive; got {pos_temperature}")
        self.in_channels = in_channels
        self.window = (window[0], window[1])
        self.grid = (grid[0], grid[1])
        self.pos_temperature = pos_temperature
        self.normalize_pos = normalize_pos
        self.group_size = group_size
        self.block_list = nn.ModuleList(FlatFormerBlock(in_channels, num_heads, group_size) for _ in range(num_blocks))
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Tensor, coordinates: Tensor, batch_size: int) -> Tensor:
        """features: N, C; coordinates: N, 4 (b z y x), rows of any order, no two alike -> B, C, H, W, zero where there is no voxel."""
        features = self.forward_voxels(features, coordinates, batch_size)
        return scatter_to_bev(features, coordinates, batch_size, (self.grid[1], self.grid[0]))

    def forward_voxels(self, features: Tensor, coordinates: Tensor, batch_size: int) -> Tensor:
        """The voxels' features after all layers, N, C, in the order of the input rows."""
        lengths = voxels_per_sample(coordinates, batch_size)  # reads the data: first, so that all the rest compiles into one graph
        orders = window_orders(coordinates, self.window, self.grid)
        places = inverse_orders(orders)
        # From one order straight to the next: entry t is the place in the order before of the voxel at place t.
        steps = torch.gather(places.roll(1, 0), 1, orders)
        position = self.position_embedding(coordinates)
        positions = [position[order] for order in orders]
        step = orders[0]
        for layer, k in self.layers():
            features = layer(features[step], positions[k], lengths)
            step = steps[(k + 1) % len(ORDERS)]
        return features[places[-1]]

    def layers(self) -> Iterator[tuple[FlatFormerLayer, int]]:
        """All layers one after the other, each with the number of its order."""
        for block in self.block_list:
            assert isinstance(block, FlatFormerBlock)
            yield from zip(block.block, range(len(ORDERS)), strict=True)

    def position_embedding(self, coordinates: Tensor) -> Tensor:
        """N, 4 (b z y x) -> N, C: sines and cosines of x, then of y, then zeros up to C. Of the grid, not of windows."""
        columns, rows = (
            position_table(cells, self.in_channels, self.pos_temperature, self.normalize_pos, coordinates.device) for cells in self.grid
        )
        embedding = torch.cat([columns[coordinates[:, 3]], rows[coordinates[:, 2]]], dim=1)
        return F.pad(embedding, (0, self.in_channels - embedding.shape[1]))


PUBLISHED_CLASSES = ("car", "pedestrian", "cyclist")


def build(
    *,
    in_channels: int = 5,
    num_classes: int = 3,
    class_names: Sequence[str] = (),
    voxel_size: VoxelSize = (0.32, 0.32, 6.0),
    point_cloud_range: PointCloudRange = (-74.88, -74.88, -2.0, 74.88, 74.88, 4.0),
    vfe_channels: Sequence[int] = (64,),
    embed_dim: int = 128,
    num_heads: int = 8,
    num_blocks: int = 2,
    window: Sequence[int] = (13, 13),
    group_size: int = 144,
    pos_temperature: float = 10000.0,
    normalize_pos: bool = False,
    backbone_channels: Sequence[int] = (64, 128),
    layer_nums: Sequence[int] = (3, 3),
    out_size_factor: int = 1,
    upsample_strides: Sequence[int] = (1, 2),
    neck_channels: Sequence[int] = (128, 128),
    share_channels: int = 64,
) -> LidarDetector:
    """FlatFormer, the whole detector.

    Args:
        in_channels: columns of a point: x, y, z in metres, tanh(intensity), then tanh(elongation) (one sweep) or the index of
            the sweep, 0, -1 or -2 (two or three).
        num_classes, class_names: names of the classes; as published where none are given and there are three.
        voxel_size, point_cloud_range: metres; one voxel spans the range along z.
        vfe_channels: widths of the point layers before the last, which is `embed_dim` wide.
        embed_dim, num_heads, num_blocks, window, group_size, pos_temperature, normalize_pos: see `FlatFormer`.
        out_size_factor: voxels of a cell of the head's maps, along each axis.
        backbone_channels, layer_nums: see `SECOND`.
        upsample_strides, neck_channels: see `SECONDFPN`; the strides of the backbone follow from these and `out_size_factor`.
        share_channels: width of the head's maps.
    """
    nx, ny, nz = grid_size(voxel_size, point_cloud_range)
    if nz != 1:
        raise InputError(f"FlatFormer's voxels are pillars: voxel_size[2] must span the range along z; {nz} voxels do")
    if class_names and len(class_names) != num_classes:
        raise InputError(f"num_classes is {num_classes}, but there are {len(class_names)} class_names")
    strides = _backbone_strides(out_size_factor, upsample_strides)
    names = class_names or (PUBLISHED_CLASSES if num_classes == 3 else tuple(f"class {i}" for i in range(num_classes)))
    return LidarDetector(
        voxel_encoder=DynamicVFE(
            in_channels=in_channels, feat_channels=(*vfe_channels, embed_dim), voxel_size=voxel_size, point_cloud_range=point_cloud_range
        ),
        middle_encoder=FlatFormer(
            in_channels=embed_dim,
            num_heads=num_heads,
            num_blocks=num_blocks,
            window=window,
            grid=(nx, ny),
            group_size=group_size,
            pos_temperature=pos_temperature,
            normalize_pos=normalize_pos,
        ),
        backbone=SECOND(in_channels=embed_dim, out_channels=backbone_channels, layer_nums=layer_nums, layer_strides=strides),
        neck=SECONDFPN(in_channels=backbone_channels, out_channels=neck_channels, upsample_strides=upsample_strides),
        bbox_head=CenterHead(
            in_channels=sum(neck_channels),
            share_channels=share_channels,
            num_classes=num_classes,
            voxel_size=voxel_size,
            point_cloud_range=point_cloud_range,
            out_size_factor=out_size_factor,
            decode=WAYMO if num_classes == 3 else None,
        ),
        in_channels=in_channels,
        class_names=names,
        voxel_size=voxel_size,
        point_cloud_range=point_cloud_range,
    )


def _backbone_strides(out_size_factor: int, upsample_strides: Sequence[int]) -> list[int]:
    """The stride of each stage for which all of them end, upsampled, on the same cells."""
    reached = [1, *(out_size_factor * stride for stride in upsample_strides)]
    if min(reached) < 1 or any(after % before for before, after in pairwise(reached)):
        raise InputError(
            f"out_size_factor must be 1 or more, and each of upsample_strides a multiple of the one before; got {out_size_factor}"
            f" and {list(upsample_strides)}"
        )
    return [after // before for before, after in pairwise(reached)]


def _infer(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the shapes of a checkpoint tell."""

    def count(prefix: str) -> int:
        return len({name[len(prefix) :].split(".", 1)[0] for name in state if name.startswith(prefix)})

    point_layers = [state[f"voxel_encoder.vfe_layers.{i}.linear.weight"] for i in range(count("voxel_encoder.vfe_layers."))]
    stages = range(count("backbone.blocks."))
    necks = [state[f"neck.deblocks.{i}.0.weight"] for i in range(count("neck.deblocks."))]
    return {
        "in_channels": point_layers[0].shape[1] - 6,  # offsets from the mean and from the centre
        "num_classes": state["bbox_head.task_heads.0.heatmap.1.weight"].shape[0],
        "vfe_channels": [weight.shape[0] for weight in point_layers[:-1]],
        "embed_dim": point_layers[-1].shape[0],
        "num_blocks": count("middle_encoder.block_list."),
        "backbone_channels": [state[f"backbone.blocks.{i}.0.0.weight"].shape[0] for i in stages],
        "layer_nums": [count(f"backbone.blocks.{i}.") - 1 for i in stages],
        "upsample_strides": [weight.shape[2] for weight in necks],
        "neck_channels": [weight.shape[1] for weight in necks],
        "share_channels": state["bbox_head.shared_conv.conv.weight"].shape[0],
    }


LAYOUT = PublishedLayout(
    build=build,
    infer=_infer,
    keys=(
        "voxel_encoder.vfe_layers.0.linear.weight",
        "middle_encoder.block_list.0.block.0.attn.attn.in_proj_weight",
        "bbox_head.task_heads.0.heatmap.1.weight",
    ),
    assumed={
        "num_heads": 8,
        "window": (13, 13),
        "group_size": 144,
        "voxel_size": (0.32, 0.32, 6.0),
        "point_cloud_range": (-74.88, -74.88, -2.0, 74.88, 74.88, 4.0),
        "out_size_factor": 1,
    },
)


def _published(*values: float) -> tuple[PublishedResult, ...]:
    """Mean AP and APH at both levels, then AP and APH at level 2 of each class."""
    names = [f"{metric} {level}" for level in ("L1", "L2") for metric in ("mAP", "mAPH")]
    names += [f"{metric} L2 {name}" for name in ("vehicle", "pedestrian", "cyclist") for metric in ("AP", "APH")]
    return tuple(PublishedResult("Waymo validation", name, value, "%") for name, value in zip(names, values, strict=True))


# Trained on simulated streets; see the card beside it.
SHIPPED = {"flatformer_streets": Path(__file__).parents[1] / "weights" / "flatformer_streets.safetensors"}
VARIANTS = {
    "flatformer": Variant(
        options={},
        summary="FlatFormer for one sweep (D1_2x; D5_1x is the same trained on a fifth of the data), 2,268,110 parameters.",
        published=_published(76.1, 73.4, 69.7, 67.2, 69.0, 68.6, 71.5, 65.3, 68.6, 67.5),
        input_size=(20000, 5),
        weights=SHIPPED,
    ),
    "flatformer_2sweeps": Variant(
        options={},
        summary="FlatFormer for two sweeps (D1_2x_2f): the fifth column of a point is its sweep, 0 or -1.",
        published=_published(78.9, 77.3, 72.7, 71.2, 70.8, 70.3, 73.8, 70.5, 73.6, 72.6),
        input_size=(40000, 5),
    ),
    "flatformer_3sweeps": Variant(
        options={},
        summary="FlatFormer for three sweeps (D1_2x_3f; D5_1x_3f on a fifth of the data): the fifth column is the sweep, 0, -1 or -2.",
        published=_published(79.6, 78.0, 73.5, 72.0, 71.4, 71.0, 74.5, 71.3, 74.7, 73.7),
        input_size=(60000, 5),
    ),
}

register_variants(
    build,
    VARIANTS,
    system="flatformer",
    task="3d detection",
    layout=LAYOUT,
    paper="FlatFormer: Flattened Window Attention for Efficient Point Cloud Transformer, Liu et al., CVPR 2023, arXiv 2301.08739",
    licence="Apache-2.0 (official code); no weights are published, as Waymo's terms do not allow it",
)
