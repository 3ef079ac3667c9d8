"""Losses of CenterPoint-style heads: Gaussian focal loss, L1 on box vectors, and the overlap that the IoU branch learns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from vsuite.pointcloud.boxes import from_mmdet, paired_iou_3d
from vsuite.pointcloud.models.center_targets import BevGrid, Targets

HeightOfIou = Literal["bottom", "centre"]
BOX_BRANCHES = ("reg", "height", "dim", "rot", "vel")
MAX_LOG_SIZE = 10.0  # 22 km: keeps the overlap of wild predictions finite


def gaussian_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Focal loss of CenterNet, summed and divided by the number of cells whose target is exactly 1.

    Args:
        logits, target: (B, K, H, W); the target in [0, 1].
    """
    probability = logits.float().sigmoid().clamp(1e-4, 1 - 1e-4)
    centre = target == 1
    found = -(probability + 1e-12).log() * (1 - probability) ** 2
    absent = -(1 - probability + 1e-12).log() * probability**2 * (1 - target) ** 4
    return torch.where(centre, found, absent).sum() / centre.sum().clamp(min=1)


def at_cells(maps: Tensor, cells: Tensor) -> Tensor:
    """Values of (B, C, H, W) at flat cell indices (B, M): (B, M, C)."""
    flat = maps.flatten(2)  # B, C, HW
    return flat.gather(2, cells[:, None].expand(-1, flat.shape[1], -1)).transpose(1, 2)


def box_loss(maps: Mapping[str, Tensor], targets: Targets, velocity_weight: float = 0.0, box_weight: float = 2.0) -> Tensor:
    """L1 between box vectors and targets at the centres, over the number of objects, weighted. NaN targets count nothing.

    Args:
        maps: of the branches reg, height, dim, rot and, with velocity, vel.
        velocity_weight: of vx and vy; 0 in FlatFormer's configurations, 0.2 in CenterPoint's for nuScenes.
        box_weight: of the whole; 2 in FlatFormer's configurations, 0.25 in CenterPoint's for nuScenes.
    """
    predicted = torch.cat([at_cells(maps[name], targets.cells) for name in BOX_BRANCHES if name in maps], 2).float()
    known = ~targets.boxes.isnan()
    weight = predicted.new_ones(predicted.shape[2])
    weight[8:] = velocity_weight
    weights = targets.mask[..., None] * known * weight
    distance = (predicted - targets.boxes.nan_to_num()).abs()
    return box_weight * (distance * weights).sum() / (targets.mask.sum() + 1e-4)


def iou_loss(maps: Mapping[str, Tensor], targets: Targets, grid: BevGrid, height: HeightOfIou = "bottom") -> Tensor:
    """L1 between the IoU branch, as it is, and the 3D IoU of the predicted with the true box, over the number of objects.

    Args:
        height: where the z of a box vector lies when boxes are overlapped. "bottom" is the published code's: it takes
            z for the bottom although it is the centre, so the target differs from the IoU where heights differ.
            "centre" is the IoU. No gradient goes through the overlap.
    """
    rows = targets.mask.bool()
    predicted = at_cells(maps["iou"], targets.cells)[rows][:, 0].float()
    with torch.no_grad():
        vectors = torch.cat([at_cells(maps[name], targets.cells) for name in BOX_BRANCHES[:4]], 2).float()
        cells = targets.cells[rows]
        found, true = (_boxes(v[rows], cells, grid, height) for v in (vectors, targets.boxes))
        overlap = paired_iou_3d(found, true).float()
    return (predicted - overlap).abs().sum() / (targets.mask.sum() + 1e-4)


def _boxes(vectors: Tensor, cells: Tensor, grid: BevGrid, height: HeightOfIou) -> Tensor:
    """Box vectors -> boxes of ours."""
    column, row = cells % grid.shape[1], cells // grid.shape[1]
    x = (column + vectors[:, 0]) * grid.cell[0] + grid.origin[0]
    y = (row + vectors[:, 1]) * grid.cell[1] + grid.origin[1]
    size = vectors[:, 3:6].clamp(max=MAX_LOG_SIZE).exp()
    bottom = vectors[:, 2] if height == "bottom" else vectors[:, 2] - size[:, 2] / 2
    yaw = torch.atan2(vectors[:, 6], vectors[:, 7])
    return from_mmdet(torch.cat([torch.stack([x, y, bottom], 1), size, yaw[:, None]], 1))
