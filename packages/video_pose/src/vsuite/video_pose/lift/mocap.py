"""Motion capture seen by virtual cameras: 2D and 3D poses from 3D alone.

A sequence is cut into shots; each shot has a camera of its own, which stands still. Training draws shots and cameras anew for
every sample, validation has fixed ones.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.video_pose.data.arrays import read_npz
from vsuite.video_pose.lift.settings import CameraSettings, LiftSettings
from vsuite.video_pose.lift.videos import Poses, Video, relative_to_root, window_rows
from vsuite.video_pose.skeletons import H36M17

FPS = 60.0
NEAREST = 1.0  # metres: nothing comes nearer to a camera


@dataclass(frozen=True)
class Sequence3D:
    """A recorded motion.

    Attributes:
        name: "action/sequence".
        poses: (T, 17, 3) in the layout h36m17, metres, y up.
    """

    name: str
    poses: Poses

    @property
    def action(self) -> str:
        return self.name.split("/")[0]


def read_mocap(path: str | Path) -> list[Sequence3D]:
    """Reads an `.npz` of int16 arrays (T, 17, 3): millimetres, y up, joints as h36m17, key "action/sequence".

    Raises:
        InputError: for a file that is none, holds objects, or whose arrays have another shape or are empty, naming the array.
    """
    arrays = read_npz(path)
    if not arrays:
        raise InputError(f"{path}: holds no sequence")
    for name, array in arrays.items():
        if array.ndim != 3 or array.shape[1:] != (H36M17.num_joints, 3) or not len(array) or array.dtype != np.int16:
            raise InputError(f"{path}: {name!r} must be int16 (T, 17, 3), millimetres; got {array.dtype} {array.shape}")
    return [Sequence3D(name, array.astype(np.float32) / np.float32(1000)) for name, array in sorted(arrays.items())]


def split_mocap(sequences: Sequence[Sequence3D], fraction: float) -> tuple[list[Sequence3D], list[Sequence3D]]:
    """Sequences to train on and held-out ones: of each action with two or more, `fraction` of them, at least one.

    Which ones depends on their names alone (by CRC-32, so that it looks random), not on their order or on a seed.
    """
    by_action = defaultdict(list)
    for sequence in sequences:
        by_action[sequence.action].append(sequence)
    held_out: set[str] = set()
    for group in by_action.values():
        count = min(len(group) - 1, max(1, round(fraction * len(group))))
        held_out |= {sequence.name for sequence in sorted(group, key=lambda s: zlib.crc32(s.name.encode()))[:count]}
    return [s for s in sequences if s.name not in held_out], [s for s in sequences if s.name in held_out]


@dataclass(frozen=True)
class View:
    """Cameras of B shots.

    Attributes:
        rotation: B, 3, 3, world -> camera. aim: B, 3, what each looks at. distance: B, from there, metres.
    """

    rotation: Poses
    aim: Poses
    distance: Poses

    def from_world(self, poses: Poses) -> Poses:
        """World (B, T, J, 3) -> camera space. A camera stands back until everything is `NEAREST` ahead."""
        found = (poses - self.aim[:, None, None]) @ self.rotation.transpose(0, 2, 1)[:, None]
        nearest = found[..., 2].min(axis=(1, 2))
        found[..., 2] += np.maximum(self.distance, NEAREST - nearest)[:, None, None]
        return found.astype(np.float32, copy=False)


NUM_DRAWS = 7


def place_cameras(draws: NDArray[np.float32], middle: Poses, settings: CameraSettings) -> View:
    """Cameras from numbers in [0, 1).

    Args:
        draws: B, `NUM_DRAWS`: direction, elevation, roll, distance, and three of where it looks.
        middle: B, 3: where the person is on the average, world, y up.
    """
    yaw = 2 * np.pi * draws[:, 0]
    low, high = np.radians(settings.elevation)
    elevation = low + (high - low) * draws[:, 1]
    roll = np.radians(settings.roll) * (2 * draws[:, 2] - 1)
    distance = settings.distance[0] + (settings.distance[1] - settings.distance[0]) * draws[:, 3]
    aim = middle + np.float32(settings.aim) * (2 * draws[:, 4:7] - 1)
    forward = np.stack([-np.cos(elevation) * np.sin(yaw), -np.sin(elevation), -np.cos(elevation) * np.cos(yaw)], axis=1)
    right = np.stack([np.cos(yaw), np.zeros_like(yaw), -np.sin(yaw)], axis=1)
    down = np.cross(forward, right)
    c, s = np.cos(roll)[:, None], np.sin(roll)[:, None]
    rotation = np.stack([c * right + s * down, c * down - s * right, forward], axis=1)
    return View(rotation.astype(np.float32), aim.astype(np.float32), distance.astype(np.float32))


def focal_length(settings: CameraSettings) -> np.float32:
    """In screen coordinates, whose unit is half the picture's width."""
    return np.float32(1 / np.tan(np.radians(settings.field_of_view) / 2))


def project(poses: Poses, settings: CameraSettings) -> Poses:
    """Camera space (..., 3) -> screen coordinates (..., 2). Pictures have no edge here: a joint beside one is where it would be."""
    return focal_length(settings) * poses[..., :2] / poses[..., 2:]


def make_videos(sequences: Sequence[Sequence3D], settings: LiftSettings) -> list[Video]:
    """The videos that validate: every shot of every sequence by `cameras_per_shot` cameras, which its name and place decide."""
    return [video for sequence in sequences for video in _videos_of(sequence, settings)]


def _videos_of(sequence: Sequence3D, settings: LiftSettings) -> list[Video]:
    found, total, count = [], len(sequence.poses), settings.cameras_per_shot
    num_shots = -(-total // settings.validation_shot)
    for shot in range(num_shots):
        poses = sequence.poses[total * shot // num_shots : total * (shot + 1) // num_shots]
        draws = np.random.default_rng([zlib.crc32(sequence.name.encode()), shot]).random((count, NUM_DRAWS), np.float32)
        draws[:, 0] = (draws[0, 0] + np.arange(count, dtype=np.float32) / count) % 1
        view = place_cameras(draws, np.tile(poses[:, H36M17.root].mean(0), (count, 1)), settings.cameras)
        seen = view.from_world(np.tile(poses, (count, 1, 1, 1)))
        screen, truth = project(seen, settings.cameras), relative_to_root(seen, H36M17)
        place = sequence.name.split("/", 1)[-1]
        found += [Video(f"{sequence.action} {place}.{shot}.{i}", screen[i], truth[i], FPS, settings.cameras.width) for i in range(count)]
    return found


class MocapSamples:
    """Windows of motion capture seen by cameras of their own, as training samples; see `vsuite.core.training.task.TrainingDataset`.

    A sample draws its numbers; a whole batch is then projected at once (`collate`).

    Args:
        num_frames: of a window.
    """

    def __init__(self, sequences: Sequence[Sequence3D], settings: LiftSettings, num_frames: int) -> None:
        lengths = np.array([len(sequence.poses) for sequence in sequences])
        ends = lengths.cumsum()
        self.poses = np.concatenate([sequence.poses for sequence in sequences])
        self.first, self.last = np.repeat(ends - lengths, lengths), np.repeat(ends - 1, lengths)
        self.settings, self.num_frames = settings, num_frames
        actions, number = np.unique([sequence.action for sequence in sequences], return_inverse=True)
        action = np.repeat(number, lengths)
        frames = np.bincount(action, minlength=len(actions)).astype(np.float64)
        chance = (frames**-settings.balance)[action]
        self.cumulative = chance.cumsum() / chance.sum()
        roots = self.poses[:, H36M17.root].astype(np.float64)
        self.root_sums = np.concatenate([np.zeros((1, 3)), roots.cumsum(0)])  # mean of a shot from two of them

    def __len__(self) -> int:
        return len(self.first)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """The numbers that a sample is made from; `index` counts an epoch and no more, as actions are balanced."""
        return {
            "draws": torch.from_numpy(rng.random(NUM_DRAWS + 6, np.float32)),
            "error": torch.from_numpy(rng.standard_normal((self.num_frames, H36M17.num_joints, 2), np.float32)),
        }

    def collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """A batch: `poses_2d` (B, T, J, 2) screen coordinates and `pose_3d` (B, 1, J, 3) metres relative to the root."""
        settings = self.settings
        draws = torch.stack([sample["draws"] for sample in samples]).numpy()
        frame, length, place, scale, flip, noise = draws[:, NUM_DRAWS:].T
        middle = np.searchsorted(self.cumulative, frame.astype(np.float64), side="right").clip(max=len(self) - 1)
        first, last = self._shots(middle, length, place)
        mean_root = (self.root_sums[last + 1] - self.root_sums[first]) / (last + 1 - first)[:, None]
        view = place_cameras(draws[:, :NUM_DRAWS], mean_root.astype(np.float32), settings.cameras)
        poses = self.poses[window_rows(middle, first, last, self.num_frames)]  # B, T, J, 3
        # Bodies grow about what the camera looks at, so that the ground stays where it is seen.
        view = View(view.rotation * (1 + settings.body_scale * (2 * scale - 1))[:, None, None], view.aim, view.distance)
        seen = view.from_world(poses)
        screen = project(seen, settings.cameras)
        truth = relative_to_root(seen[:, self.num_frames // 2 :][:, :1], H36M17)
        if settings.flip:
            mirrored = flip < 0.5
            screen[mirrored], truth[mirrored] = H36M17.flip(screen[mirrored]), H36M17.flip(truth[mirrored])
        pixels = settings.noise[0] + (settings.noise[1] - settings.noise[0]) * noise
        error = torch.stack([sample["error"] for sample in samples])
        error *= torch.from_numpy(2 * pixels / np.float32(settings.cameras.width)).float()[:, None, None, None]
        return {"poses_2d": torch.from_numpy(screen) + error, "pose_3d": torch.from_numpy(truth)}

    def _shots(
        self, middle: NDArray[np.int64], length: NDArray[np.float32], place: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """First and last frame of a shot about each middle, inside its sequence."""
        least, most = self.settings.shot
        lengths = (least + (most + 1 - least) * length).astype(np.int64)
        first = middle - (lengths * place).astype(np.int64)
        return np.maximum(first, self.first[middle]), np.minimum(first + lengths - 1, self.last[middle])
