"""CenterHead: object centres as peaks of a heat map, boxes read at the peaks (CenterPoint, Yin et al., 2021; as FlatFormer uses it).

Classes may be split over several tasks, each with branches of its own behind the shared convolution, as CenterPoint does for nuScenes.
Maps, targets and labels of the tasks lie behind each other along their channels; one task is the case of one such part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.pointcloud.boxes import Detections
from vsuite.pointcloud.models.center_decode import DecodeSettings, best_cells, boxes_of, scores_of, suppress
from vsuite.pointcloud.models.center_loss import BOX_BRANCHES, HeightOfIou, at_cells, box_loss, gaussian_focal_loss, iou_loss
from vsuite.pointcloud.models.center_targets import BevGrid, Targets, center_targets, check_labels

BoxCoding = Literal["mmdet3d_0", "mmdet3d_1"]
Folded = tuple[Tensor, Tensor]
"""Weight and bias of a convolution."""


class ConvNormReLU(nn.Module):
    """3 x 3 convolution without bias, batch norm, ReLU: (B, C, H, W) -> (B, out_channels, H, W)."""

    def __init__(self, in_channels: int, out_channels: int, eps: float, momentum: float) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=eps, momentum=momentum)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))

    def folded(self) -> Folded:
        """Weight and bias of the convolution that equals both layers in eval mode. Cheap, so it is done for each call."""
        norm = self.bn
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        return self.conv.weight * factor[:, None, None, None], norm.bias - norm.running_mean * factor


class CenterHead(nn.Module):
    """Bird's-eye-view features (B, in_channels, H, W) -> maps of centres and boxes; training loss; detections.

    `forward` gives the maps, `loss` compares them with boxes, `decode` turns them into boxes. `predict` goes from features
    to boxes directly and gives what `decode(forward(x))` gives in eval mode, faster.

    Boxes given to `loss` follow mmdet3d before 1.0 (`boxes.to_mmdet`), as the branches do. Detections are in our convention.

    Args:
        in_channels: of the features. share_channels: of the shared convolution and of each branch.
        num_classes: heat maps, one a class.
        tasks: classes of each task's head, in the order of the labels, such as (1, 2, 2); their sum is num_classes. Empty: one
            head for all.
        with_velocity: a branch for vx, vy; boxes then have 9 columns.
        with_iou: a branch that estimates each box's IoU with the truth and tempers its score.
        point_cloud_range: x y z minimum, then maximum, in metres. voxel_size: x y z, metres.
        out_size_factor: voxels along the side of one cell of the maps.
        overlap, min_radius, max_objects: of the targets (see `center_targets`).
        velocity_weight: of the velocity in the box loss. box_weight: of the box loss.
        iou_height: see `center_loss.iou_loss`; "bottom" as published, "centre" corrected.
        box_coding: what the branches `dim` and `rot` give: "mmdet3d_0" width before length and the yaw clockwise, as mmdet3d before
            1.0; "mmdet3d_1" length first and counter-clockwise. The maps of `forward` are in the former in any case.
        shared_norm: eps and momentum of the shared convolution's norm: FlatFormer's, or torch's own (1e-5, 0.1) in CenterPoint.
        decode: how detections are taken from the maps.
    """

    def __init__(
        self,
        in_channels: int = 256,
        share_channels: int = 64,
        num_classes: int = 3,
        *,
        tasks: Sequence[int] = (),
        with_velocity: bool = True,
        with_iou: bool = True,
        point_cloud_range: Sequence[float] = (-74.88, -74.88, -2.0, 74.88, 74.88, 4.0),
        voxel_size: Sequence[float] = (0.32, 0.32, 6.0),
        out_size_factor: int = 1,
        overlap: float = 0.1,
        min_radius: int = 1,
        max_objects: int = 500,
        velocity_weight: float = 0.0,
        box_weight: float = 2.0,
        iou_height: HeightOfIou = "bottom",
        box_coding: BoxCoding = "mmdet3d_0",
        shared_norm: tuple[float, float] = (1e-3, 0.01),
        decode: DecodeSettings | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes = {num_classes}; a head has one class at least")
        if iou_height not in ("bottom", "centre"):
            raise InputError(f"iou_height = {iou_height!r}; it is 'bottom' (as published) or 'centre'")
        if box_coding not in ("mmdet3d_0", "mmdet3d_1"):
            raise InputError(f"box_coding = {box_coding!r}; it is 'mmdet3d_0' (before 1.0) or 'mmdet3d_1'")
        self.box_coding: BoxCoding = box_coding
        self.num_classes = num_classes
        self.tasks = tuple(tasks) or (num_classes,)
        if min(self.tasks) < 1 or sum(self.tasks) != num_classes:
            raise InputError(f"tasks {list(tasks)} do not split {num_classes} classes: each has one at least, and together they have all")
        self.starts = (0, *accumulate(self.tasks))[:-1]
        self.origin = (float(point_cloud_range[0]), float(point_cloud_range[1]))
        self.cell = (float(voxel_size[0]) * out_size_factor, float(voxel_size[1]) * out_size_factor)
        self.target_options = {
            "overlap": overlap,
            "min_radius": min_radius,
            "max_objects": max_objects,
            "with_velocity": with_velocity,
        }
        self.velocity_weight, self.box_weight = velocity_weight, box_weight
        self.iou_height: HeightOfIou = iou_height
        self.decode_settings = decode or DecodeSettings()
        self.decode_settings.groups(self.tasks)  # refuses tuples of a wrong length now and not after hours of training

        branches = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1}
        if not with_velocity:
            del branches["vel"]
        if not with_iou:
            del branches["iou"]
        self.shared_conv = ConvNormReLU(in_channels, share_channels, *shared_norm)
        self.task_heads = nn.ModuleList(
            nn.ModuleDict({name: self._branch(share_channels, n) for name, n in (branches | {"heatmap": size}).items()})
            for size in self.tasks
        )
        for task in range(len(self.tasks)):
            heatmap = self._convs("heatmap", task)[1]
            assert heatmap.bias is not None
            nn.init.constant_(heatmap.bias, -2.19)  # probability 0.1 at the start

    @staticmethod
    def _branch(channels: int, out_channels: int) -> nn.Sequential:
        # The published head gives its own norm settings to the shared convolution alone: branches have torch's defaults.
        return nn.Sequential(ConvNormReLU(channels, channels, eps=1e-5, momentum=0.1), nn.Conv2d(channels, out_channels, 3, padding=1))

    @property
    def branches(self) -> nn.ModuleDict:
        """Branch of the first task by name, in the published order; every task has the same names."""
        heads = self.task_heads[0]
        assert isinstance(heads, nn.ModuleDict)
        return heads

    def grid(self, shape: Sequence[int]) -> BevGrid:
        """The cells of maps of H rows and W columns."""
        return BevGrid(self.origin, self.cell, (int(shape[-2]), int(shape[-1])))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features (B, in_channels, H, W) -> raw maps (B, channels, H, W) by name.

        reg 2 (centre within its cell, in cells), height 1 (z of the centre, m), dim 3 (log of width, length, height), rot 2
        (sine, cosine of the yaw in mmdet3d's sense), vel 2 (m/s), iou 1, heatmap num_classes (before the sigmoid). Where there
        are several tasks, each but the heat map has so many channels for each, in their order.
        """
        shared = self.shared_conv(x)
        found = [{name: self._coded(name, branch(shared)) for name, branch in task.items()} for task in self.task_heads]  # type: ignore[operator]
        return found[0] if len(found) == 1 else {name: torch.cat([maps[name] for maps in found], 1) for name in found[0]}

    def _coded(self, name: str, values: Tensor) -> Tensor:
        """A branch's output (channels second) in the coding of mmdet3d before 1.0: yaw there is -yaw - pi/2."""
        if self.box_coding == "mmdet3d_0" or name not in ("dim", "rot"):
            return values
        return values[:, [1, 0, 2]] if name == "dim" else -values.flip(1)

    @torch.no_grad()
    def recode(self) -> None:
        """Rewrites branches that give "mmdet3d_0" for "mmdet3d_1"; what the head finds stays the same."""
        if self.box_coding == "mmdet3d_1":
            return
        self.box_coding = "mmdet3d_1"
        for task in range(len(self.tasks)):
            for name in ("dim", "rot"):
                for values in self._convs(name, task)[1].parameters():
                    values.copy_(self._coded(name, values[None])[0])  # the change is its own inverse

    def _by_task(self, maps: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """The maps of each task."""
        parts = {
            name: values.split(self.tasks, 1) if name == "heatmap" else values.chunk(len(self.tasks), 1) for name, values in maps.items()
        }
        return [dict(zip(parts, values, strict=True)) for values in zip(*parts.values(), strict=True)]

    def targets(self, shape: Sequence[int], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Targets]:
        """Training targets of each task for maps of H rows and W columns; see `center_targets`."""
        check_labels(boxes, labels, self.num_classes)
        return [
            center_targets(boxes, [_within(label, start, size) for label in labels], self.grid(shape), size, **self.target_options)  # type: ignore[arg-type]
            for start, size in zip(self.starts, self.tasks, strict=True)
        ]

    def loss(self, maps: Mapping[str, Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Losses of a batch, `loss_heatmap`, `loss_bbox` and, with the branch, `loss_iou`: scalars whose sum is the total.

        Each is the sum over the tasks, which are averaged over their own objects.

        Args:
            maps: of `forward`.
            boxes: for each sample (M, 7 or 9) in the convention of mmdet3d before 1.0 (`boxes.to_mmdet`); M may be 0.
            labels: for each sample (M,) integers below num_classes; negative ones are left out.
        """
        shape = maps["heatmap"].shape
        each = [self._task_loss(*task) for task in zip(self._by_task(maps), self.targets(shape, boxes, labels), strict=True)]
        return {name: torch.stack([losses[name] for losses in each]).sum() for name in each[0]}

    def _task_loss(self, maps: Mapping[str, Tensor], targets: Targets) -> dict[str, Tensor]:
        losses = {
            "loss_heatmap": gaussian_focal_loss(maps["heatmap"], targets.heatmap),
            "loss_bbox": box_loss(maps, targets, self.velocity_weight, self.box_weight),
        }
        if "iou" in maps:
            losses["loss_iou"] = iou_loss(maps, targets, self.grid(maps["heatmap"].shape), self.iou_height)
        return losses

    @torch.no_grad()
    def decode(self, maps: Mapping[str, Tensor], settings: DecodeSettings | None = None) -> list[Detections]:
        """Detections of each sample, in our box convention, from the maps of `forward`."""
        vectors = [torch.cat([task[name] for name in BOX_BRANCHES if name in task], 1) for task in self._by_task(maps)]

        def vectors_at(sample: int, task: int, cells: Tensor) -> Tensor:
            return at_cells(vectors[task][sample : sample + 1], cells[None])[0]

        return self._detections(maps, vectors_at, settings or self.decode_settings)

    @torch.no_grad()
    def predict(self, x: Tensor, settings: DecodeSettings | None = None) -> list[Detections]:
        """Features (B, in_channels, H, W) -> detections of each sample: equal to `decode(forward(x))` in eval mode, faster.

        Batch norms are folded into the convolutions, only the heat map and IoU branches run over the whole map, and the
        others are computed from the 5 x 5 cells around each candidate, all that a cell's output depends on.
        Running statistics are used whatever the mode.
        """
        shared = F.conv2d(x, *self.shared_conv.folded(), padding=1).relu_()
        shared = shared.contiguous(memory_format=torch.channels_last)  # not x, which is four times as large
        names = [name for name in ("heatmap", "iou") if name in self.branches]
        dense = [self._convs(name, task) for name in names for task in range(len(self.tasks))]
        hidden = F.conv2d(shared, *_first(dense), padding=1).relu_()
        found = F.conv2d(hidden, *_last(dense), padding=1)
        maps = dict(zip(names, found.split([self.num_classes, len(self.tasks)][: len(names)], 1), strict=True))

        def vectors_at(sample: int, task: int, cells: Tensor) -> Tensor:
            distinct, inverse = cells.unique(return_inverse=True)  # classes may share a cell
            return self._boxes_at(shared[sample], distinct, task)[inverse]

        return self._detections(maps, vectors_at, settings or self.decode_settings)

    def _detections(
        self, maps: Mapping[str, Tensor], vectors_at: Callable[[int, int, Tensor], Tensor], settings: DecodeSettings
    ) -> list[Detections]:
        """Detections of each sample from raw heat maps and IoU maps; `vectors_at` gives the box vectors of a sample's task at cells."""
        by_task = self._by_task({name: maps[name] for name in ("heatmap", "iou") if name in maps})
        scores = [scores_of(task["heatmap"], task.get("iou"), settings.iou_power) for task in by_task]
        grid, detections = self.grid(scores[0].shape), []
        for sample in range(len(scores[0])):
            parts = []
            for task, start in enumerate(self.starts):
                values, labels, cells = best_cells(scores[task][sample], settings)
                parts.append((boxes_of(vectors_at(sample, task, cells), cells, grid), values, labels + start))
            boxes, values, labels = (torch.cat(part) for part in zip(*parts, strict=True))
            detections.append(suppress(boxes, values, labels, settings, grid, self.tasks))
        return detections

    def _convs(self, name: str, task: int) -> tuple[ConvNormReLU, nn.Conv2d]:
        first, last = self.task_heads[task][name].children()  # type: ignore[index]
        assert isinstance(first, ConvNormReLU)
        assert isinstance(last, nn.Conv2d)
        return first, last

    def _boxes_at(self, shared: Tensor, cells: Tensor, task: int) -> Tensor:
        """Outputs (N, 8 or 10) of a task's box branches at the flat cells (N,) of one sample's shared features (C, H, W)."""
        channels, height, width = shared.shape
        names = [name for name in BOX_BRANCHES if name in self.branches]
        convs = [self._convs(name, task) for name in names]
        offsets = torch.arange(-2, 3, device=cells.device)
        y, x = (cells // width)[:, None] + offsets, (cells % width)[:, None] + offsets  # N, 5
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]  # N, 5, 5
        pixels = shared.permute(1, 2, 0)[y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]]
        patches = (pixels * inside[..., None]).permute(0, 3, 1, 2)  # N, C, 5, 5
        hidden = F.conv2d(patches, *_first(convs)).relu_()
        hidden = hidden * inside[:, None, 1:4, 1:4]  # beyond the border the hidden map is padding, that is zero
        outputs = [
            self._coded(name, F.conv2d(part, last.weight, last.bias).flatten(1))  # N, C, 3, 3 -> N, k
            for name, part, (_, last) in zip(names, hidden.split(channels, 1), convs, strict=True)
        ]
        return torch.cat(outputs, 1)


def _within(labels: Tensor, start: int, size: int) -> Tensor:
    """Labels of a task, from 0; -1 for those of others."""
    return torch.where((labels >= start) & (labels < start + size), labels - start, -1)


def _first(branches: Sequence[tuple[ConvNormReLU, nn.Conv2d]]) -> Folded:
    """The first convolutions of some branches as one."""
    weights, biases = zip(*(first.folded() for first, _ in branches), strict=True)
    return torch.cat(weights), torch.cat(biases)


def _last(branches: Sequence[tuple[ConvNormReLU, nn.Conv2d]]) -> Folded:
    """The last convolutions of some branches as one on their joined inputs, zero between different branches."""
    convs = [last for _, last in branches]
    columns = [
        F.pad(conv.weight, (0, 0, 0, 0, i * conv.in_channels, (len(convs) - 1 - i) * conv.in_channels)) for i, conv in enumerate(convs)
    ]
    return torch.cat(columns), torch.cat([conv.bias for conv in convs if conv.bias is not None])
