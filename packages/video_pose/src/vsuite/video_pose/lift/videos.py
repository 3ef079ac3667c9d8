"""Videos with 2D and 3D poses, and the windows of them that models learn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.video_pose.skeletons import Skeleton

Poses = NDArray[np.float32]


@dataclass(frozen=True)
class Video:
    """What one camera saw of one person.

    Attributes:
        name: the action, and after a space what else tells it apart; see `metrics.pose.evaluate_poses`.
        poses_2d: (T, J, 2) screen coordinates.
        poses_3d: (T, J, 3) camera space, metres, relative to the root.
        fps: frames a second.
        width: of the picture, pixels.
    """

    name: str
    poses_2d: Poses
    poses_3d: Poses
    fps: float
    width: int

    def __post_init__(self) -> None:
        if self.poses_2d.shape[:2] != self.poses_3d.shape[:2]:
            raise InputError(f"{self.name}: 2D and 3D poses differ: {self.poses_2d.shape} and {self.poses_3d.shape}")

    def with_noise(self, pixels: float, seed: int) -> Video:
        """Its 2D joints moved by a Gaussian error of this standard deviation; the same for the same seed."""
        if pixels == 0:
            return self
        error = np.random.default_rng(seed).standard_normal(self.poses_2d.shape, np.float32) * np.float32(2 * pixels / self.width)
        return replace(self, poses_2d=self.poses_2d + error)


def window_rows(middle: NDArray[np.int64], first: NDArray[np.int64], last: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Frames (B, length) of the windows about `middle` (B); beyond `first` and `last` (B, both belong) these are repeated."""
    rows = middle[:, None] + np.arange(length) - length // 2
    return rows.clip(first[:, None], last[:, None])


def relative_to_root(poses: Poses, skeleton: Skeleton) -> Poses:
    """(..., J, 3) less its root."""
    return poses - poses[..., skeleton.root : skeleton.root + 1, :]


class VideoSamples:
    """Windows of videos as training samples; see `vsuite.core.training.task.TrainingDataset`.

    Args:
        num_frames: of a window.
        noise: least and greatest standard deviation of the error that is added to the 2D joints, pixels.
        flip: mirror every other sample.
    """

    def __init__(self, videos: Sequence[Video], skeleton: Skeleton, num_frames: int, noise: tuple[float, float], *, flip: bool) -> None:
        lengths = np.array([len(video.poses_2d) for video in videos])
        ends = lengths.cumsum()
        self.poses_2d, self.poses_3d = (np.concatenate([getattr(v, name) for v in videos]) for name in ("poses_2d", "poses_3d"))
        self.first, self.last = np.repeat(ends - lengths, lengths), np.repeat(ends - 1, lengths)
        self.pixel = np.repeat(np.array([2 / video.width for video in videos], np.float32), lengths)
        self.skeleton, self.num_frames, self.noise, self.flip = skeleton, num_frames, noise, flip

    def __len__(self) -> int:
        return len(self.first)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """The window about a frame: `poses_2d` (T, J, 2) and `pose_3d` (1, J, 3)."""
        middle = np.array([index])
        rows = window_rows(middle, self.first[middle], self.last[middle], self.num_frames)[0]
        seen, truth = self.poses_2d[rows], self.poses_3d[[index]]
        if self.flip and rng.random() < 0.5:
            seen, truth = self.skeleton.flip(seen), self.skeleton.flip(truth)
        error = rng.standard_normal(seen.shape, np.float32) * np.float32(rng.uniform(*self.noise)) * self.pixel[index]
        return {"poses_2d": torch.from_numpy(seen + error), "pose_3d": torch.from_numpy(truth)}
