"""Oriented boxes: corners, exact rotated overlap, non-maximum suppression, points inside, and the older convention of mmdet3d.

Boxes are rows `x y z length width height yaw [vx vy]`: metres, z up, z at the centre, the length along the heading, yaw
counter-clockwise from +x in radians.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from vsuite.core.errors import InputError

PAIRS_AT_ONCE = 1 << 17  # bounds the memory of every function here to some 100 MB


@dataclass(frozen=True)
class Detections:
    """What was found in one sweep, in rows of falling score within each class.

    Attributes:
        boxes: (N, 7) or, with velocity in m/s, (N, 9) float32.
        scores: (N,) float32 in [0, 1]. labels: (N,) int64, indices of class names.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def to(self, device: torch.device | str) -> Detections:
        """The same on another device."""
        return Detections(self.boxes.to(device), self.scores.to(device), self.labels.to(device))


def check_boxes(boxes: Tensor | np.ndarray, what: str = "boxes") -> None:
    """Raises an InputError unless the boxes are (N, 7 or more), finite, and of no negative size. Velocities may be NaN: unknown."""
    if boxes.ndim != 2 or boxes.shape[1] < 7:
        raise InputError(f"{what}: shape {tuple(boxes.shape)}; boxes are rows x y z length width height yaw [vx vy]")
    values = boxes[:, :7] if isinstance(boxes, Tensor) else torch.tensor(boxes[:, :7], dtype=torch.float64)
    if not bool(values.isfinite().all()):
        row = int((~values.isfinite()).any(1).nonzero()[0])
        raise InputError(f"{what}: row {row} holds NaN or infinite values: {values[row].tolist()}")
    if bool((values[:, 3:6] < 0).any()):
        row = int((values[:, 3:6] < 0).any(1).nonzero()[0])
        raise InputError(f"{what}: row {row} has a negative size: {values[row, 3:6].tolist()} (length, width, height in metres)")


def wrap_angle(angle: Tensor) -> Tensor:
    """Angles in radians brought into [-pi, pi). Those already there stay bit for bit."""
    return angle - 2 * math.pi * torch.floor((angle + math.pi) / (2 * math.pi))


def to_mmdet(boxes: Tensor) -> Tensor:
    """Ours -> the convention of mmdet3d before 1.0: `x y z_bottom width length height yaw`, yaw clockwise, the heading at -yaw - pi/2."""
    x, y, z, length, width, height, yaw = boxes[:, :7].unbind(1)
    columns = torch.stack([x, y, z - height / 2, width, length, height, wrap_angle(-yaw - math.pi / 2)], 1)
    return torch.cat([columns, boxes[:, 7:]], 1)


def from_mmdet(boxes: Tensor) -> Tensor:
    """The convention of mmdet3d before 1.0 -> ours: the inverse of `to_mmdet`."""
    x, y, bottom, width, length, height, yaw = boxes[:, :7].unbind(1)
    columns = torch.stack([x, y, bottom + height / 2, length, width, height, wrap_angle(-yaw - math.pi / 2)], 1)
    return torch.cat([columns, boxes[:, 7:]], 1)


def corners_bev(boxes: Tensor) -> Tensor:
    """(N, 7+) -> (N, 4, 2): front left, rear left, rear right, front right; counter-clockwise from above."""
    signs = boxes.new_tensor([[0.5, 0.5], [-0.5, 0.5], [-0.5, -0.5], [0.5, -0.5]])
    along, across = (signs * boxes[:, None, 3:5]).unbind(2)  # N, 4
    cos, sin = boxes[:, 6:7].cos(), boxes[:, 6:7].sin()
    return torch.stack([boxes[:, 0:1] + along * cos - across * sin, boxes[:, 1:2] + along * sin + across * cos], 2)


def corners(boxes: Tensor) -> Tensor:
    """(N, 7+) -> (N, 8, 3): the four of `corners_bev` at the bottom, then the same four at the top."""
    around = corners_bev(boxes).repeat(1, 2, 1)  # N, 8, 2
    half = boxes.new_tensor([-0.5] * 4 + [0.5] * 4)
    return torch.cat([around, (boxes[:, 2:3] + half * boxes[:, 5:6])[..., None]], 2)


def paired_overlap(a: Tensor, b: Tensor) -> Tensor:
    """Area that the rectangles a[i] and b[i] share seen from above: (N, 7+), (N, 7+) -> (N,) float64. Nothing is checked.

    In the frame of b the area is the integral over |x| <= length/2 of the part of a's outline within |y| <= width/2, so
    by Green's theorem a sum over a's four edges of the integral of a clamped linear function: exact, without a case.
    """
    a, b = a.double(), b.double()
    offset = a[:, :2] - b[:, :2]
    cos, sin = b[:, 6].cos(), b[:, 6].sin()
    x, y = cos * offset[:, 0] + sin * offset[:, 1], cos * offset[:, 1] - sin * offset[:, 0]
    outline = corners_bev(torch.stack([x, y, x, a[:, 3], a[:, 4], x, a[:, 6] - b[:, 6]], 1))
    (x0, y0), (x1, y1) = outline.unbind(2), outline.roll(-1, 1).unbind(2)  # N, 4 each
    half_length, half_width = b[:, 3:4] / 2, b[:, 4:5] / 2
    start, end = x0.clamp(-half_length, half_length), x1.clamp(-half_length, half_length)
    run, rise = torch.where(x0 == x1, 1.0, x1 - x0), y1 - y0
    from_y = y0 + ((start - x0) / run).clamp(0, 1) * rise
    to_y = y0 + ((end - x0) / run).clamp(0, 1) * rise
    shared = ((start - end) * _mean_of_clamped(from_y, to_y, half_width)).sum(1)
    return torch.where(shared > 1e-12 * _footprint(b), shared, 0.0)  # below it the sum is rounding alone


def _mean_of_clamped(start: Tensor, end: Tensor, limit: Tensor) -> Tensor:
    """Mean of clamp(t, -limit, limit) for t running from start to end."""
    low, high = torch.minimum(start, end), torch.maximum(start, end)
    inner_low, inner_high = low.clamp(-limit, limit), high.clamp(-limit, limit)
    above, below = (high - low.clamp(min=limit)).clamp(min=0), (high.clamp(max=-limit) - low).clamp(min=0)
    middle = (inner_low + inner_high) / 2
    total = limit * (above - below) + middle * (inner_high - inner_low)
    return torch.where(high > low, total / torch.where(high > low, high - low, 1.0), middle)


def _footprint(boxes: Tensor) -> Tensor:
    return boxes[:, 3].double() * boxes[:, 4].double()


def _ratio(shared: Tensor, total: Tensor) -> Tensor:
    """Overlap / union, and 0 for boxes without any size."""
    union = total - shared
    return torch.where(union > 0, shared / torch.where(union > 0, union, 1.0), 0.0).clamp(0, 1)


def paired_iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """IoU of a[i] and b[i] seen from above: (N, 7+), (N, 7+) -> (N,) float64. Nothing is checked."""
    return _ratio(paired_overlap(a, b), _footprint(a) + _footprint(b))


def paired_iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the volumes of a[i] and b[i]: (N, 7+), (N, 7+) -> (N,) float64. Nothing is checked."""
    shared = paired_overlap(a, b) * _shared_height(a, b)
    return _ratio(shared, _footprint(a) * a[:, 5] + _footprint(b) * b[:, 5])


def _shared_height(a: Tensor, b: Tensor) -> Tensor:
    (za, ha), (zb, hb) = a[:, [2, 5]].double().unbind(1), b[:, [2, 5]].double().unbind(1)
    return (torch.minimum(za + ha / 2, zb + hb / 2) - torch.maximum(za - ha / 2, zb - hb / 2)).clamp(min=0)


def overlap_bev(a: Tensor, b: Tensor) -> Tensor:
    """Area in square metres that each pair shares seen from above: (N, 7+), (M, 7+) -> (N, M) float64, exact.

    Raises:
        InputError: for NaN, infinite or negative sizes.
    """
    return _all_pairs(a, b, paired_overlap)


def iou_bev(a: Tensor, b: Tensor) -> Tensor:
    """IoU of each pair seen from above: (N, 7+), (M, 7+) -> (N, M) float64 in [0, 1]; 0 where both boxes are empty.

    Raises:
        InputError: for NaN, infinite or negative sizes.
    """
    return _all_pairs(a, b, paired_iou_bev)


def iou_3d(a: Tensor, b: Tensor) -> Tensor:
    """IoU of the volumes of each pair: (N, 7+), (M, 7+) -> (N, M) float64 in [0, 1]; 0 where both boxes are empty.

    Raises:
        InputError: for NaN, infinite or negative sizes.
    """
    return _all_pairs(a, b, paired_iou_3d)


def _all_pairs(a: Tensor, b: Tensor, measure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`measure` of every pair whose circumscribed circles meet, zero for the others."""
    check_boxes(a, "first boxes")
    check_boxes(b, "second boxes")
    result = torch.zeros(len(a), len(b), dtype=torch.float64, device=a.device)
    for first, second in _near_pairs(a, b):
        result[first, second] = measure(a[first], b[second])
    return result


def _radius(boxes: Tensor) -> Tensor:
    """Radius of the circle around each box seen from above, with a margin for rounding."""
    return torch.linalg.vector_norm(boxes[:, 3:5].double(), dim=1) / 2 * (1 + 1e-9)


def _near_pairs(a: Tensor, b: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    radius_a, radius_b = _radius(a), _radius(b)
    rows = max(1, PAIRS_AT_ONCE // max(len(b), 1))
    for start in range(0, len(a), rows):
        reach = radius_a[start : start + rows, None] + radius_b
        offset = a[start : start + rows, None, :2].double() - b[:, :2].double()
        first, second = (offset.square().sum(2) <= reach.square()).nonzero(as_tuple=True)
        yield first + start, second


def nms(boxes: Tensor, scores: Tensor, threshold: float, *, pre_max: int | None = None, post_max: int | None = None) -> Tensor:
    """Greedy non-maximum suppression of rotated boxes seen from above: exact, in the order of falling scores.

    A box is dropped if its IoU with a better box that was kept is above the threshold. Boxes of equal score keep their order.

    Args:
        boxes: (N, 7+). scores: (N,). threshold: an IoU in [0, 1].
        pre_max: only so many of the best take part. post_max: at most so many are kept.

    Returns:
        Indices of the kept boxes by falling score, int64, on the device of the boxes.

    Raises:
        InputError: for bad boxes, NaN scores, or numbers that do not match.
    """
    check_boxes(boxes)
    if scores.shape != boxes.shape[:1] or bool(scores.isnan().any()):
        raise InputError(f"scores: one number for each of {len(boxes)} boxes, none of them NaN; got shape {tuple(scores.shape)}")
    order = scores.argsort(descending=True, stable=True)[:pre_max]
    ranked = boxes[order, :7].detach()
    if ranked.device.type == "cpu":
        from vsuite.pointcloud.nms_kernel import greedy

        kept = greedy(ranked.numpy(), threshold, post_max)
    else:
        kept = _greedy(len(order), _conflicts(ranked, threshold), post_max)
    return order[torch.from_numpy(kept).to(order.device)]


def circle_nms(boxes: Tensor, scores: Tensor, threshold: float, *, pre_max: int | None = None, post_max: int | None = None) -> Tensor:
    """Greedy suppression by the distance of centres seen from above: of two that are no farther apart, the better one stays.

    Args:
        threshold: the square of the distance, in square metres, as CenterPoint's settings have it. The others as of `nms`.

    Returns:
        Indices of the kept boxes by falling score, int64, on the device of the boxes.
    """
    order = scores.argsort(descending=True, stable=True)[:pre_max]
    centres = boxes[order, :2].detach()
    apart = (centres[:, None] - centres[None]).square().sum(2)
    conflicts = (apart <= threshold).triu(1).nonzero().cpu().numpy()
    kept = _greedy(len(order), conflicts, post_max)
    return order[torch.from_numpy(kept).to(order.device)]


def _conflicts(boxes: Tensor, threshold: float) -> np.ndarray:
    """(P, 2) pairs i < j of rows whose IoU is above the threshold, ordered by i."""
    found = [torch.zeros(0, 2, dtype=torch.int64, device=boxes.device)]
    for first, second in _near_pairs(boxes, boxes):
        first, second = first[first < second], second[first < second]
        above = paired_iou_bev(boxes[first], boxes[second]) > threshold
        found.append(torch.stack([first[above], second[above]], 1))
    return torch.cat(found).cpu().numpy()


def _greedy(count: int, conflicts: np.ndarray, limit: int | None) -> np.ndarray:
    """Rows kept by the greedy pass over rows 0..count-1 in order."""
    free = np.ones(count, bool)
    rows, starts = np.unique(conflicts[:, 0], return_index=True)
    for row, worse in zip(rows, np.split(conflicts[:, 1], starts[1:]), strict=False):  # rows without conflicts drop nothing
        if free[row]:
            free[worse] = False
    return np.flatnonzero(free)[:limit]


def points_in_boxes(points: Tensor, boxes: Tensor) -> Tensor:
    """Which points lie in which boxes, faces included: (P, 3+), (N, 7+) -> (P, N) bool.

    Raises:
        InputError: for bad boxes, or points without three columns.
    """
    check_boxes(boxes)
    if points.ndim != 2 or points.shape[1] < 3:
        raise InputError(f"points: shape {tuple(points.shape)}; they are rows x y z ...")
    inside = torch.zeros(len(points), len(boxes), dtype=torch.bool, device=points.device)
    cos, sin = boxes[:, 6].cos(), boxes[:, 6].sin()
    rows = max(1, PAIRS_AT_ONCE // max(len(boxes), 1))
    for start in range(0, len(points), rows):
        dx, dy, dz = (points[start : start + rows, None, :3] - boxes[:, :3]).unbind(2)
        along, across = cos * dx + sin * dy, cos * dy - sin * dx
        within = (along.abs() <= boxes[:, 3] / 2) & (across.abs() <= boxes[:, 4] / 2)
        inside[start : start + rows] = within & (dz.abs() <= boxes[:, 5] / 2)
    return inside


def box_of_points(points: Tensor, boxes: Tensor) -> Tensor:
    """Index of the first box that holds each point, -1 outside all: (P, 3+), (N, 7+) -> (P,) int64."""
    if len(boxes) == 0:
        return torch.full((len(points),), -1, dtype=torch.int64, device=points.device)
    inside = points_in_boxes(points, boxes)
    return torch.where(inside.any(1), inside.int().argmax(1), -1)
