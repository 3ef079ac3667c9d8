"""CenterHead: object centres as peaks of a heat map, boxes read at the peaks (CenterPoint, Yin et al., 2021; as FlatFormer uses it)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core.errors import InputError
from vsuite.pointcloud.boxes import Detections
from vsuite.pointcloud.models.center_decode import DecodeSettings, best_cells, boxes_of, scores_of, suppress
from vsuite.pointcloud.models.center_loss import BOX_BRANCHES, HeightOfIou, at_cells, box_loss, gaussian_focal_loss, iou_loss
from vsuite.pointcloud.models.center_targets import BevGrid, Targets, center_targets

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
        with_velocity: a branch for vx, vy; boxes then have 9 columns.
        with_iou: a branch that estimates each box's IoU with the truth and tempers its score.
        point_cloud_range: x y z minimum, then maximum, in metres. voxel_size: x y z, metres.
        out_size_factor: voxels along the side of one cell of the maps.
        overlap, min_radius, max_objects: of the targets (see `center_targets`).
        velocity_weight: of the velocity in the box loss.
        iou_height: see `center_loss.iou_loss`; "bottom" as published, "centre" corrected.
        decode: how detections are taken from the maps.
    """

    def __init__(
        self,
        in_channels: int = 256,
        share_channels: int = 64,
        num_classes: int = 3,
        *,
        with_velocity: bool = True,
        with_iou: bool = True,
        point_cloud_range: Sequence[float] = (-74.88, -74.88, -2.0, 74.88, 74.88, 4.0),
        voxel_size: Sequence[float] = (0.32, 0.32, 6.0),
        out_size_factor: int = 1,
        overlap: float = 0.1,
        min_radius: int = 1,
        max_objects: int = 500,
        velocity_weight: float = 0.0,
        iou_height: HeightOfIou = "bottom",
        decode: DecodeSettings | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise InputError(f"num_classes = {num_classes}; a head has one class at least")
        if iou_height not in ("bottom", "centre"):
            raise InputError(f"iou_height = {iou_height!r}; it is 'bottom' (as published) or 'centre'")
        self.num_classes = num_classes
        self.origin = (float(point_cloud_range[0]), float(point_cloud_range[1]))
        self.cell = (float(voxel_size[0]) * out_size_factor, float(voxel_size[1]) * out_size_factor)
        self.target_options = {
            "overlap": overlap,
            "min_radius": min_radius,
            "max_objects": max_objects,
            "with_velocity": with_velocity,
        }
        self.velocity_weight = velocity_weight
        self.iou_height: HeightOfIou = iou_height
        self.decode_settings = decode or DecodeSettings()
        self.decode_settings.for_class(0, num_classes)  # refuses tuples of a wrong length now and not after hours of training

        branches = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2, "iou": 1, "heatmap": num_classes}
        if not with_velocity:
            del branches["vel"]
        if not with_iou:
            del branches["iou"]
        self.shared_conv = ConvNormReLU(in_channels, share_channels, eps=1e-3, momentum=0.01)
        self.task_heads = nn.ModuleList(
            [nn.ModuleDict({name: self._branch(share_channels, channels) for name, channels in branches.items()})]
        )
        heatmap = self._convs("heatmap")[1]
        assert heatmap.bias is not None
        nn.init.constant_(heatmap.bias, -2.19)  # probability 0.1 at the start

    @staticmethod
    def _branch(channels: int, out_channels: int) -> nn.Sequential:
        # The published head gives its own norm settings to the shared convolution alone: branches have torch's defaults.
        return nn.Sequential(ConvNormReLU(channels, channels, eps=1e-5, momentum=0.1), nn.Conv2d(channels, out_channels, 3, padding=1))

    @property
    def branches(self) -> nn.ModuleDict:
        """Branch by name, in the published order."""
        heads = self.task_heads[0]
        assert isinstance(heads, nn.ModuleDict)
        return heads

    def grid(self, shape: Sequence[int]) -> BevGrid:
        """The cells of maps of H rows and W columns."""
        return BevGrid(self.origin, self.cell, (int(shape[-2]), int(shape[-1])))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features (B, in_channels, H, W) -> raw maps (B, channels, H, W) by name.

        reg 2 (centre within its cell, in cells), height 1 (z of the centre, m), dim 3 (log of width, length, height), rot 2
        (sine, cosine of the yaw in mmdet3d's sense), vel 2 (m/s), iou 1, heatmap num_classes (before the sigmoid).
        """
        shared = self.shared_conv(x)
        return {name: branch(shared) for name, branch in self.branches.items()}

    def targets(self, shape: Sequence[int], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> Targets:
        """Training targets for maps of H rows and W columns; see `center_targets`."""
        return center_targets(boxes, labels, self.grid(shape), self.num_classes, **self.target_options)  # type: ignore[arg-type]

    def loss(self, maps: Mapping[str, Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """Losses of a batch, `loss_heatmap`, `loss_bbox` and, with the branch, `loss_iou`: scalars whose sum is the total.

        Args:
            maps: of `forward`.
            boxes: for each sample (M, 7 or 9) in the convention of mmdet3d before 1.0 (`boxes.to_mmdet`); M may be 0.
            labels: for each sample (M,) integers below num_classes; negative ones are left out.
        """
        heatmap = maps["heatmap"]
        targets = self.targets(heatmap.shape, boxes, labels)
        losses = {
            "loss_heatmap": gaussian_focal_loss(heatmap, targets.heatmap),
            "loss_bbox": box_loss(maps, targets, self.velocity_weight),
        }
        if "iou" in maps:
            losses["loss_iou"] = iou_loss(maps, targets, self.grid(heatmap.shape), self.iou_height)
        return losses

    @torch.no_grad()
    def decode(self, maps: Mapping[str, Tensor], settings: DecodeSettings | None = None) -> list[Detections]:
        """Detections of each sample, in our box convention, from the maps of `forward`."""
        settings = settings or self.decode_settings
        scores = scores_of(maps["heatmap"], maps.get("iou"), settings.iou_power)
        vectors = torch.cat([maps[name] for name in BOX_BRANCHES if name in maps], 1)
        found = []
        for index in range(len(scores)):
            values, labels, cells = best_cells(scores[index], settings)
            here = at_cells(vectors[index : index + 1], cells[None])[0]
            found.append(self._boxes(here, values, labels, cells, settings, scores.shape))
        return found

    def _boxes(
        self, vectors: Tensor, values: Tensor, labels: Tensor, cells: Tensor, settings: DecodeSettings, shape: Sequence[int]
    ) -> Detections:
        grid = self.grid(shape)
        return suppress(boxes_of(vectors, cells, grid), values, labels, settings, grid, self.num_classes)

    @torch.no_grad()
    def predict(self, x: Tensor, settings: DecodeSettings | None = None) -> list[Detections]:
        """Features (B, in_channels, H, W) -> detections of each sample: equal to `decode(forward(x))` in eval mode, faster.

        Batch norms are folded into the convolutions, only the heat map and IoU branches run over the whole map, and the
        others are computed from the 5 x 5 cells around each candidate, all that a cell's output depends on.
        Running statistics are used whatever the mode.
        """
        settings = settings or self.decode_settings
        shared = F.conv2d(x, *self.shared_conv.folded(), padding=1).relu_()
        shared = shared.contiguous(memory_format=torch.channels_last)  # not x, which is four times as large
        dense = ["heatmap", "iou"] if "iou" in self.branches else ["heatmap"]
        hidden = F.conv2d(shared, *self._first(dense), padding=1).relu_()
        maps = F.conv2d(hidden, *self._last(dense), padding=1)
        scores = scores_of(maps[:, : self.num_classes], maps[:, self.num_classes :] if len(dense) > 1 else None, settings.iou_power)
        found = []
        for index in range(len(scores)):
            values, labels, cells = best_cells(scores[index], settings)
            distinct, inverse = cells.unique(return_inverse=True)  # classes may share a cell
            vectors = self._boxes_at(shared[index], distinct)[inverse]
            found.append(self._boxes(vectors, values, labels, cells, settings, scores.shape))
        return found

    def _convs(self, name: str) -> tuple[ConvNormReLU, nn.Conv2d]:
        first, last = self.branches[name].children()
        assert isinstance(first, ConvNormReLU)
        assert isinstance(last, nn.Conv2d)
        return first, last

    def _first(self, names: Sequence[str]) -> Folded:
        """The first convolutions of some branches as one."""
        weights, biases = zip(*(self._convs(name)[0].folded() for name in names), strict=True)
        return torch.cat(weights), torch.cat(biases)

    def _last(self, names: Sequence[str]) -> Folded:
        """The last convolutions of some branches as one on their joined inputs, zero between different branches."""
        convs = [self._convs(name)[1] for name in names]
        columns = [
            F.pad(conv.weight, (0, 0, 0, 0, i * conv.in_channels, (len(convs) - 1 - i) * conv.in_channels)) for i, conv in enumerate(convs)
        ]
        return torch.cat(columns), torch.cat([conv.bias for conv in convs if conv.bias is not None])

    def _boxes_at(self, shared: Tensor, cells: Tensor) -> Tensor:
        """Outputs (N, 8 or 10) of the box branches at the flat cells (N,) of one sample's shared features (C, H, W)."""
        channels, height, width = shared.shape
        names = [name for name in BOX_BRANCHES if name in self.branches]
        offsets = torch.arange(-2, 3, device=cells.device)
        y, x = (cells // width)[:, None] + offsets, (cells % width)[:, None] + offsets  # N, 5
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]  # N, 5, 5
        pixels = shared.permute(1, 2, 0)[y.clamp(0, height - 1)[:, :, None], x.clamp(0, width - 1)[:, None, :]]
        patches = (pixels * inside[..., None]).permute(0, 3, 1, 2)  # N, C, 5, 5
        hidden = F.conv2d(patches, *self._first(names)).relu_()
        hidden = hidden * inside[:, None, 1:4, 1:4]  # beyond the border the hidden map is padding, that is zero
        outputs = [
            F.conv2d(part, last.weight, last.bias).flatten(1)  # N, C, 3, 3 -> N, k
            for part, last in zip(hidden.split(channels, 1), (self._convs(name)[1] for name in names), strict=True)
        ]
        return torch.cat(outputs, 1)
