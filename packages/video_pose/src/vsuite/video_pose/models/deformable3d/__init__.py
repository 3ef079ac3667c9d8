"""Action recognition by 3D deformable attention: a reconstruction, since no official code is public.

`operators` samples and attends, `transformer` joins a volume with poses, `backbone` makes the volume, `model` is the two
systems (RGB with poses, poses alone), and importing `variants` registers them.
"""

from __future__ import annotations

from vsuite.video_pose.models.deformable3d.model import PoseTransformer, RGBPoseTransformer
from vsuite.video_pose.models.deformable3d.operators import (
    DeformableAttention3d,
    MultiScaleDeformableAttention3d,
    TokenSearch3d,
    trilinear_sample,
)
from vsuite.video_pose.models.deformable3d.transformer import CrossModalTransformer
from vsuite.video_pose.models.deformable3d.variants import deformable3d, deformable3d_pose

__all__ = [
    "CrossModalTransformer",
    "DeformableAttention3d",
    "MultiScaleDeformableAttention3d",
    "PoseTransformer",
    "RGBPoseTransformer",
    "TokenSearch3d",
    "deformable3d",
    "deformable3d_pose",
    "trilinear_sample",
]
