"""What the tests of CenterPoint share: options that make it small, and its state dict under published names."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

from vsuite.pointcloud.models.detector import LidarDetector

SMALL: dict[str, Any] = {
    "voxel_size": (0.4, 0.4, 0.5),
    "point_cloud_range": (-9.6, -9.6, -3.0, 9.6, 9.6, 3.0),
    "encoder_channels": (8, 12, 16),
    "encoder_blocks": 1,
    "output_channels": 16,
    "backbone_channels": (16, 24),
    "layer_nums": (1, 1),
    "neck_channels": (16, 16),
}


def as_mmdet3d(detector: LidarDetector, *, before_spconv_2: bool = True) -> dict[str, Tensor]:
    """The state dict under the names of mmdetection3d's CenterPoint; before spconv 2 sparse weights had another order of axes."""
    state = {}
    for name, value in detector.state_dict().items():
        found = re.match(r"backbone\.blocks\.(\d+)\.(\d+)\.(\d)\.(.*)", name)
        if found:
            stage, unit, layer, rest = found.groups()
            name = f"backbone.blocks.{stage}.{3 * int(unit) + int(layer)}.{rest}"
        if before_spconv_2 and name.startswith("middle_encoder.") and value.ndim == 5:
            value = value.movedim(0, -1).contiguous()
        state["pts_" + name] = value
    return state
