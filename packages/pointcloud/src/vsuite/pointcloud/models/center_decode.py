"""From head maps to boxes: scores, the best cells, box vectors to boxes, non-maximum suppression by class or by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.pointcloud.boxes import Detections, circle_nms, from_mmdet, nms
from vsuite.pointcloud.models.center_targets import BevGrid


@dataclass(frozen=True)
class DecodeSettings:
    """How boxes are taken from the maps. Where a tuple is allowed it holds a number for each class, or each task (see `within`).

    Attributes:
        max_candidates: cells with the highest scores that become boxes, over all classes of a task together.
        score_threshold: boxes with a lower or equal score are dropped.
        iou_power: score = heat map * clamp(iou, 0, 1) ** power.
        centre_range: x y z minimum, then maximum, of the centres that are kept. None: the head's range in x and y, z within 10 m.
        within: whether boxes suppress others of their class alone, or all those that their task's head found.
        nms: "rotated" drops the worse of two boxes whose overlap is above the threshold, "circle" that of two whose centres
            are no farther apart.
        nms_threshold: the IoU seen from above; for "circle" the square of the distance, in square metres (which CenterPoint's
            configurations call min_radius).
        pre_max, post_max: boxes of a class or task before and after non-maximum suppression, at most.
    """

    max_candidates: int = 4096
    score_threshold: float = 0.1
    iou_power: float = 2.0
    centre_range: tuple[float, float, float, float, float, float] | None = None
    within: Literal["class", "task"] = "class"
    nms: Literal["rotated", "circle"] = "rotated"
    nms_threshold: float | tuple[float, ...] = 0.55
    pre_max: int | tuple[int, ...] = 1024
    post_max: int | tuple[int, ...] = 100

    def groups(self, tasks: Sequence[int]) -> list[Group]:
        """The labels that suppress each other, for tasks of so many classes.

        Raises:
            InputError: for tuples of another length.
        """
        sizes = list(tasks) if self.within == "task" else [1] * sum(tasks)
        thresholds, pre_max, post_max = (self._for_each(name, len(sizes)) for name in ("nms_threshold", "pre_max", "post_max"))
        stops = list(accumulate(sizes))
        starts = [0, *stops[:-1]]
        return [Group(*group) for group in zip(starts, stops, thresholds, pre_max, post_max, strict=True)]

    def _for_each(self, name: str, count: int) -> tuple[Any, ...]:
        value = getattr(self, name)
        if not isinstance(value, tuple):
            return (value,) * count
        if len(value) != count:
            plural = {"class": "classes", "task": "tasks"}[self.within]
            raise InputError(f"{name}: {len(value)} numbers for {count} {plural}; give one number, or one a {self.within}")
        return value


class Group(NamedTuple):
    """Labels from `start` to before `stop`, and how their boxes suppress each other."""

    start: int
    stop: int
    threshold: float
    pre_max: int
    post_max: int


WAYMO = DecodeSettings(nms_threshold=(0.8, 0.55, 0.55), pre_max=(2048, 1024, 1024), post_max=(300, 100, 100))
"""FlatFormer's settings for vehicle, pedestrian and cyclist."""


def scores_of(heatmap: Tensor, iou: Tensor | None, iou_power: float) -> Tensor:
    """Scores (B, K, H, W) from the raw heat map (B, K, H, W) and the raw IoU map (B, 1, H, W)."""
    scores = heatmap.float().sigmoid()
    return scores if iou is None else scores * iou.float().clamp(0, 1) ** iou_power


def best_cells(scores: Tensor, settings: DecodeSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Scores, labels and flat cells of the best places of one sample's (K, H, W) scores, by falling score.

    The best of each class and then the best of those are the best of all classes together.
    """
    flat = scores.flatten()
    values, places = flat.topk(min(settings.max_candidates, len(flat)))
    chosen = values > settings.score_threshold  # false for NaN
    cells_of_map = scores.shape[1] * scores.shape[2]
    places = places[chosen]
    return values[chosen], places // cells_of_map, places % cells_of_map


def boxes_of(vectors: Tensor, cells: Tensor, grid: BevGrid) -> Tensor:
    """Boxes of ours (N, 7 or 9) from branch outputs (N, 8 or 10: reg, height, dim, rot, vel) at flat cells (N,)."""
    vectors = vectors.float()
    column, row = cells % grid.shape[1], cells // grid.shape[1]
    x = (column + vectors[:, 0]) * grid.cell[0] + grid.origin[0]
    y = (row + vectors[:, 1]) * grid.cell[1] + grid.origin[1]
    size = vectors[:, 3:6].exp()
    bottom = vectors[:, 2] - size[:, 2] / 2
    yaw = torch.atan2(vectors[:, 6], vectors[:, 7])
    return from_mmdet(torch.cat([torch.stack([x, y, bottom], 1), size, yaw[:, None], vectors[:, 8:]], 1))


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, settings: DecodeSettings, grid: BevGrid, tasks: Sequence[int]) -> Detections:
    """Keeps boxes within the range, then suppresses class by class (or task by task): class 0 first, each by falling score.

    Boxes that are not finite (a size of exp(100), say) are dropped.
    """
    low, high = centre_range(settings, grid)
    centre = boxes[:, :3]
    inside = (centre >= boxes.new_tensor(low)).all(1) & (centre <= boxes.new_tensor(high)).all(1) & boxes.isfinite().all(1)
    kept = []
    dropping = {"rotated": nms, "circle": circle_nms}[settings.nms]
    for group in settings.groups(tasks):
        rows = (inside & (labels >= group.start) & (labels < group.stop)).nonzero()[:, 0]
        kept.append(rows[dropping(boxes[rows], scores[rows], group.threshold, pre_max=group.pre_max, post_max=group.post_max)])
    rows = torch.cat(kept)
    return Detections(boxes[rows], scores[rows], labels[rows])


def centre_range(settings: DecodeSettings, grid: BevGrid) -> tuple[Sequence[float], Sequence[float]]:
    """Lowest and highest x y z of a centre that is kept."""
    if settings.centre_range is not None:
        return settings.centre_range[:3], settings.centre_range[3:]
    low = [*grid.origin, -10.0]
    high = [start + size * count for start, size, count in zip(grid.origin, grid.cell, reversed(grid.shape), strict=True)]
    return low, [*high, 10.0]
