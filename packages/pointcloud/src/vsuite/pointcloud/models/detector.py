"""A lidar detector from parts: voxels, an encoder of them, a bird's-eye-view network and a head of object centres."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.pointcloud.boxes import Detections, check_boxes, to_mmdet
from vsuite.pointcloud.models.center_head import CenterHead
from vsuite.pointcloud.voxels import PointCloudRange, VoxelSize, check_points, inside_range


class LidarDetector(nn.Module):
    """Points -> boxes. The parts bear the names that they have in checkpoints of mmdetection3d.

    Args:
        voxel_encoder: points of each sample -> features N, C and voxels N, 4 (b z y x).
        middle_encoder: features, voxels, batch size -> map B, C, H, W.
        backbone, neck: map -> maps -> one map.
        bbox_head: that map -> maps of the heads, and boxes.
        in_channels: columns of a point; x, y, z in metres come first (x forward, y left, z up).
        class_names: in the order of the labels.
        voxel_size, point_cloud_range: metres; those of the voxel encoder.
    """

    def __init__(
        self,
        *,
        voxel_encoder: nn.Module,
        middle_encoder: nn.Module,
        backbone: nn.Module,
        neck: nn.Module,
        bbox_head: CenterHead,
        in_channels: int,
        class_names: Sequence[str],
        voxel_size: VoxelSize,
        point_cloud_range: PointCloudRange,
    ) -> None:
        super().__init__()
        self.voxel_encoder = voxel_encoder
        self.middle_encoder = middle_encoder
        self.backbone = backbone
        self.neck = neck
        self.bbox_head = bbox_head
        self.in_channels = in_channels
        self.class_names = tuple(class_names)
        self.voxel_size = tuple(voxel_size)
        self.point_cloud_range = tuple(point_cloud_range)

    def features(self, points: Sequence[Tensor]) -> Tensor:
        """What the head reads: P_i, in_channels a sample -> B, C, H, W. A sample may be empty; the batch may not.

        Points beyond the range count as being in its border cells.

        Raises:
            InputError: for an empty batch, another number of columns, NaN and infinite values.
        """
        if len(points) == 0:
            raise InputError("the detector takes one sweep or more; got none")
        check_points(points, self.in_channels)
        voxels, coordinates = self.voxel_encoder(points)
        return self.neck(self.backbone(self.middle_encoder(voxels, coordinates, len(points))))

    def forward(self, points: Sequence[Tensor]) -> dict[str, Tensor]:
        """P_i, in_channels a sample (or one B, P, in_channels) -> the maps of the head, each B, K, H, W, before any activation."""
        return self.bbox_head(self.features(points))

    def inside(self, points: Sequence[Tensor]) -> list[Tensor]:
        """The points of each sample that lie in the range."""
        check_points(points, self.in_channels)
        return [sample[inside_range(sample, self.point_cloud_range)] for sample in points]

    def loss(self, points: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> dict[str, Tensor]:
        """The losses of a batch; their sum is what to minimise. Points beyond the range are dropped.

        Args:
            points: P_i, in_channels a sample.
            boxes: M_i, 7 or 9 a sample: x y z length width height yaw [vx vy], z at the centre.
            labels: M_i a sample, indices of `class_names`.

        Raises:
            InputError: for lists of unequal length, damaged boxes, labels that are no class, and what `features` refuses.
        """
        self._check_targets(points, boxes, labels)
        maps = self(self.inside(points))
        return self.bbox_head.loss(maps, [to_mmdet(b) for b in boxes], labels)

    def _check_targets(self, points: Sequence[Tensor], boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> None:
        if not len(points) == len(boxes) == len(labels):
            raise InputError(f"got {len(points)} sweeps, {len(boxes)} lists of boxes and {len(labels)} lists of labels")
        for i, (some_boxes, some_labels) in enumerate(zip(boxes, labels, strict=True)):
            check_boxes(some_boxes, f"boxes of sample {i}")
            if some_labels.shape != some_boxes.shape[:1]:
                raise InputError(f"sample {i}: {len(some_boxes)} boxes and labels of shape {list(some_labels.shape)}")
            if len(some_labels) and not 0 <= int(some_labels.min()) <= int(some_labels.max()) < len(self.class_names):
                raise InputError(f"sample {i}: labels are 0 to {len(self.class_names) - 1}; got {some_labels.unique().tolist()}")

    @torch.no_grad()
    def predict(self, points: Sequence[Tensor], score_threshold: float = 0.1) -> list[Detections]:
        """The boxes of each sweep, in our convention. Points beyond the range are dropped.

        Args:
            points: P_i, in_channels a sample.
            score_threshold: boxes that score no more are left out. The other settings are those of `bbox_head.decode_settings`.

        Raises:
            InputError: see `features`.
        """
        settings = dataclasses.replace(self.bbox_head.decode_settings, score_threshold=score_threshold)
        return self.bbox_head.predict(self.features(self.inside(points)), settings)
