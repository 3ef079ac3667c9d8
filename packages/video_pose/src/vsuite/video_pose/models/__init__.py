"""The systems of this package, one file each; importing this module registers them (torch only)."""

from vsuite.video_pose.models.convformer import ConvFormer
from vsuite.video_pose.models.deformable3d import PoseTransformer, RGBPoseTransformer
from vsuite.video_pose.models.lmuformer import LMUFormer
from vsuite.video_pose.models.poseformer import PoseFormer
from vsuite.video_pose.models.predformer import PredFormer
from vsuite.video_pose.models.videopose3d import TemporalModel

__all__ = ["ConvFormer", "LMUFormer", "PoseFormer", "PoseTransformer", "PredFormer", "RGBPoseTransformer", "TemporalModel"]
