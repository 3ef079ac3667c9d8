"""What is done to skeletons before a model sees them, as pyskl does it; poses are M, T, J, C (people, frames, joints, channels)."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.video_pose.heatmaps import joint_heatmaps, limb_heatmaps
from vsuite.video_pose.skeletons import Skeleton

TEST_SEED = 255
LOWEST_SCORE = 0.01
SMALLEST_BOX = 10.0  # pixels

# The parent of each joint in pyskl's bones where it is another than the layout's own.
BONE_PARENTS = {
    "coco17": (0, 0, 0, 1, 2, 0, 0, 5, 6, 7, 8, 0, 0, 11, 12, 13, 14),
    "openpose18": (0, 0, 1, 2, 3, 1, 5, 6, 2, 8, 9, 5, 11, 12, 0, 0, 14, 15),
}
COCO_LIMBS = (
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (0, 5),
    (5, 7),
    (7, 9),
    (0, 6),
    (6, 8),
    (8, 10),
    (5, 11),
    (11, 13),
    (13, 15),
    (6, 12),
    (12, 14),
    (14, 16),
    (11, 12),
)


# --- which frames ---


def uniform_sample(num_frames: int, clip_length: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """The frames of one clip for training: one from each of `clip_length` equal parts of the video.

    Videos of less than twice the length lose single frames; those shorter than a clip begin anywhere and go round.
    """
    _check_lengths(num_frames, clip_length)
    if num_frames < clip_length:
        return (rng.integers(num_frames) + np.arange(clip_length)) % num_frames
    if num_frames < 2 * clip_length:
        return _skipping(clip_length, rng.choice(clip_length + 1, num_frames - clip_length, replace=False))
    bounds = np.arange(clip_length + 1) * num_frames // clip_length
    return rng.integers(bounds[:-1], bounds[1:])


def uniform_sample_test(num_frames: int, clip_length: int, num_clips: int = 1, seed: int = TEST_SEED) -> NDArray[np.int64]:
    """The frames of the clips of a video for testing, number for number those of pyskl: num_clips, clip_length.

    It draws from numpy's legacy generator, and more than it uses, since the published numbers depend on that.
    """
    _check_lengths(num_frames, clip_length)
    if num_clips < 1:
        raise InputError(f"num_clips must be 1 or more; got {num_clips}")
    rng = np.random.RandomState(seed)
    clips = []
    for clip in range(num_clips):
        rng.rand()
        rng.randint(1)
        if num_frames < clip_length:
            start = clip if num_frames < num_clips else clip * num_frames // num_clips
            clips.append((start + np.arange(clip_length)) % num_frames)
        elif num_frames < 2 * clip_length:
            clips.append(_skipping(clip_length, rng.choice(clip_length + 1, num_frames - clip_length, replace=False)))
        else:
            bounds = np.arange(clip_length + 1) * num_frames // clip_length
            clips.append(bounds[:-1] + rng.randint(np.diff(bounds)))
    return np.stack(clips)


def _skipping(clip_length: int, skipped: NDArray) -> NDArray[np.int64]:
    """Consecutive frames with one more left out before each of these places."""
    jumps = np.zeros(clip_length + 1, np.int64)
    jumps[skipped] = 1
    return np.arange(clip_length) + np.cumsum(jumps)[:-1]


def _check_lengths(num_frames: int, clip_length: int) -> None:
    if num_frames < 1 or clip_length < 1:
        raise InputError(f"a video and a clip have 1 frame or more; got {num_frames} and {clip_length}")


# --- where ---


def normalise_2d(
    keypoint: NDArray,
    score: NDArray,
    image_shape: tuple[int, int],
    *,
    mode: Literal["fix", "auto"] = "fix",
    threshold: float = LOWEST_SCORE,
) -> NDArray[np.float32]:
    """Pixels -> -1 to 1 with the score as a third channel; joints of a score up to the threshold are put at 0.

    Args:
        keypoint: M, T, J, 2; score: M, T, J.
        image_shape: (height, width).
        mode: "fix": -1 to 1 is the picture; "auto": the box of the valid joints, unless it is 10 pixels or less in size.

    Returns:
        M, T, J, 3.
    """
    if mode not in ("fix", "auto"):
        raise InputError(f"mode must be 'fix' or 'auto'; got {mode!r}")
    _check_poses(keypoint, 2)
    if score.shape != keypoint.shape[:-1]:
        raise InputError(f"scores must be one for each joint, {keypoint.shape[:-1]}; got {score.shape}")
    valid = score > threshold
    half = np.array(image_shape[::-1], np.float32) / 2
    centre = half
    if mode == "auto" and valid.any():
        low, high = keypoint[valid].min(0), keypoint[valid].max(0)
        if ((high - low) > SMALLEST_BOX).all():
            centre, half = (low + high) / 2, (high - low) / 2
    places = np.where(valid[..., None], (keypoint - centre) / half, 0)
    return np.concatenate([places, score[..., None]], -1).astype(np.float32)


def normalise_3d(
    keypoint: NDArray, *, centre: int = 1, up: tuple[int, int] = (0, 1), across: tuple[int, int] = (4, 8)
) -> NDArray[np.float32]:
    """Turns and moves skeletons so that the main person stands upright at the origin in the first frame.

    The main person, who is in more frames, comes first, and frames without that person are dropped. Joint `centre` of the
    first frame is subtracted from every joint that is not 0; the line `up` becomes +z, then the line `across` +x.

    Args:
        keypoint: M, T, J, 3 with M 1 or 2; zeros where a person is missing. The defaults are those of NTU RGB+D's layout.

    Returns:
        M, T', J, 3, T' <= T.

    Raises:
        InputError: for other shapes, and where there is no one at all.
    """
    _check_poses(keypoint, 3)
    if keypoint.shape[0] not in (1, 2) or max(centre, *up, *across) >= keypoint.shape[2]:
        raise InputError(f"skeletons must be of one or two people with the joints {centre}, {up}, {across}; got {keypoint.shape}")
    poses = keypoint.astype(np.float64)
    there = np.asarray((~np.isclose(poses, 0)).any((2, 3)))  # M, T
    main = int(there.sum(1).argmax())
    if not there[main].any():
        raise InputError("there is no one in any frame of the skeletons")
    poses = poses[::-1] if main == 1 else poses
    poses = poses[:, there[main]]
    poses = np.where((poses != 0).any(-1, keepdims=True), poses - poses[0, 0, centre], 0)
    for (start, end), axis in ((up, (0.0, 0.0, 1.0)), (across, (1.0, 0.0, 0.0))):
        first = poses[0, 0]
        poses = poses @ _rotation(first[end] - first[start], np.array(axis)).T
    return poses.astype(np.float32)


def _rotation(source: NDArray, target: NDArray) -> NDArray:
    """3, 3: turns the direction of `source` into the unit vector `target` the short way; as published, not at all if they oppose."""
    axis = np.cross(source, target)
    length = np.linalg.norm(source)
    if np.abs(axis).sum() < 1e-6 or length < 1e-12:
        return np.eye(3)
    axis = axis / np.linalg.norm(axis)
    angle = np.arccos(np.clip(source @ target / length, -1, 1))
    x, y, z = axis * np.sin(angle / 2)
    w = np.cos(angle / 2)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


# --- streams ---


def to_bones(poses: NDArray, skeleton: Skeleton, *, scored: bool = False) -> NDArray:
    """Each joint less its parent. With `scored` the third channel is a score, and a bone's is the mean of its ends'."""
    skeleton.check(poses)
    parents = BONE_PARENTS.get(skeleton.name) or [joint if parent < 0 else parent for joint, parent in enumerate(skeleton.parents)]
    bones = poses - poses[..., list(parents), :]
    if scored:
        bones[..., 2] = (poses[..., 2] + poses[..., list(parents), 2]) / 2
    return bones


def to_motion(poses: NDArray, *, scored: bool = False) -> NDArray:
    """The next frame less this one, 0 in the last. With `scored` the third channel is a score, and a step's is the mean of both."""
    motion = np.zeros_like(poses)
    motion[..., :-1, :, :] = np.diff(poses, axis=-3)
    if scored:
        motion[..., :-1, :, 2] = (poses[..., :-1, :, 2] + poses[..., 1:, :, 2]) / 2
    return motion


def streams(poses: NDArray, skeleton: Skeleton, *, scored: bool = False) -> dict[str, NDArray]:
    """The four streams "joint", "bone", "joint_motion" and "bone_motion", each of the shape of `poses` (..., T, J, C)."""
    bones = to_bones(poses, skeleton, scored=scored)
    return {
        "joint": poses,
        "bone": bones,
        "joint_motion": to_motion(poses, scored=scored),
        "bone_motion": to_motion(bones, scored=scored),
    }


def with_people(poses: NDArray, num_people: int = 2) -> NDArray:
    """M, T, J, C with zeros for missing people, and without those too many."""
    missing = max(num_people - len(poses), 0)
    return np.concatenate([poses[:num_people], np.zeros((missing, *poses.shape[1:]), poses.dtype)])


# --- heatmaps ---


def crop_to_people(keypoint: NDArray, image_shape: tuple[int, int], size: int = 64, *, padding: float = 0.25) -> NDArray[np.float32]:
    """Pixels -> cells of a square picture of the people: the box of all joints that are not 0, widened, square, resized.

    Args:
        keypoint: M, T, J, 2; image_shape: (height, width), taken where there is no joint.
        size: of a side of the new picture.
        padding: by which share the box is widened. It may leave the picture.

    Returns:
        M, T, J, 2; zeros stay zeros.
    """
    _check_poses(keypoint, 2)
    there = (keypoint != 0).any(-1)
    low, high = (keypoint[there].min(0), keypoint[there].max(0)) if there.any() else (np.zeros(2), np.array(image_shape[::-1], float))
    side = max(float((high - low).max()) * (1 + padding), 1.0)
    corner = (low + high - side) / 2
    return np.where(there[..., None], (keypoint - corner) * (size / side), 0).astype(np.float32)


def heatmap_volume(
    keypoint: NDArray,
    score: NDArray | None,
    image_shape: tuple[int, int],
    *,
    sigma: float = 0.6,
    scaling: float = 1.0,
    limbs: tuple[tuple[int, int], ...] | None = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Poses as pictures, the maximum over people: T, J (or limbs), height, width.

    Args:
        keypoint: M, T, J, 2 in pixels; score: M, T, J, the peaks; None: 1 everywhere.
        image_shape: (height, width), before the scaling.
        sigma: in cells.
        scaling: of coordinates and picture.
        limbs: pairs of joints to draw instead of joints, such as `COCO_LIMBS`.
        device: on which to draw.
    """
    _check_poses(keypoint, 2)
    points = torch.as_tensor(np.asarray(keypoint, np.float32), device=device) * scaling
    peaks = torch.ones(points.shape[:-1], device=device) if score is None else torch.as_tensor(np.asarray(score, np.float32), device=device)
    if peaks.shape != points.shape[:-1]:
        raise InputError(f"scores must be one for each joint, {tuple(points.shape[:-1])}; got {tuple(peaks.shape)}")
    size = int(image_shape[0] * scaling + 0.5), int(image_shape[1] * scaling + 0.5)
    drawn = joint_heatmaps(points, peaks, size, sigma) if limbs is None else limb_heatmaps(points, peaks, limbs, size, sigma)
    return drawn.amax(0)


def with_mirrored(volume: Tensor, skeleton: Skeleton, limbs: tuple[tuple[int, int], ...] | None = None) -> Tensor:
    """A volume (T, J or limbs, height, width) and after it, in time, its mirror image with left and right exchanged."""
    order = skeleton.mirror
    if limbs is not None:
        places = {frozenset(limb): place for place, limb in enumerate(limbs)}
        order = [places.get(frozenset(order[joint] for joint in limb), -1) for limb in limbs]
    if len(order) != volume.shape[1] or -1 in order:
        raise InputError(f"a volume of {volume.shape[1]} channels is not of {skeleton.name}, or its limbs have no mirror images")
    return torch.cat([volume, volume[:, order].flip(-1)])


def _check_poses(keypoint: NDArray, channels: int) -> None:
    if keypoint.ndim != 4 or keypoint.shape[-1] != channels or not keypoint.size:
        raise InputError(f"poses must be people, frames, joints, {channels}; got {keypoint.shape}")
    if not np.isfinite(keypoint).any():
        raise InputError("poses are NaN everywhere")
