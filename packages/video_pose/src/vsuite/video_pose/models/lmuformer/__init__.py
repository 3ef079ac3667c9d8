"""LMUFormer: `model` the networks, `layers` what they are made of, `memory`, `spiking` and `streaming` the ideas."""

from vsuite.video_pose.models.lmuformer.memory import LMUCell, SpikingLMUCell
from vsuite.video_pose.models.lmuformer.model import LMUFormer
from vsuite.video_pose.models.lmuformer.psmnist import PermutedMNIST
from vsuite.video_pose.models.lmuformer.spiking import LIF
from vsuite.video_pose.models.lmuformer.streaming import Stream

__all__ = ["LIF", "LMUCell", "LMUFormer", "PermutedMNIST", "SpikingLMUCell", "Stream"]
