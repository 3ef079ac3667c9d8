"""From the people of a video to what a model takes: which frames, whose joints, in which coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.video_pose.action.settings import AugmentSettings, ClipSettings
from vsuite.video_pose.data.skeleton_ops import crop_to_people, normalise_3d, uniform_sample, uniform_sample_test
from vsuite.video_pose.skeletons import NTU25, Skeleton

UNITS = 1.5  # 2D joints that all lie within this of the corner are no pixels


@dataclass(frozen=True)
class Video:
    """The people in one video.

    Attributes:
        name: what results are called by.
        joints: M, T, J, C with C 2 (pixels) or 3 (metres), floating-point; zeros where a joint is missing.
        scores: M, T, J from 0 to 1; 0 where a joint is missing.
        label: class from 0; -1 when unknown.
        image_shape: (height, width) in pixels, or None.
        film: the video's file, or None.
    """

    name: str
    joints: NDArray[np.floating]
    scores: NDArray[np.floating]
    label: int = -1
    image_shape: tuple[int, int] | None = None
    film: Path | None = None

    @property
    def num_frames(self) -> int:
        return self.joints.shape[1]

    @classmethod
    def of(
        cls,
        joints: NDArray[np.floating],
        scores: NDArray[np.floating] | None = None,
        *,
        name: str = "poses",
        image_shape: tuple[int, int] | None = None,
    ) -> Video:
        """A video from arrays.

        Args:
            joints: T, J, C of one person, or M, T, J, C; NaN where a joint is missing.
            scores: T, J or M, T, J; 0 where a joint is missing. None: 1 but for joints whose coordinates are all 0, which are missing.

        Raises:
            InputError: for other shapes, and where everything is NaN.
        """
        joints = np.asarray(joints)
        if joints.ndim == 3:
            joints, scores = joints[None], None if scores is None else np.asarray(scores)[None]
        if joints.ndim != 4 or joints.dtype.kind not in "fiu":
            raise InputError(
                f"{name}: poses are people, frames, joints, coordinates (or frames, joints, coordinates); got {joints.dtype} {joints.shape}"
            )
        finite = np.isfinite(joints).all(-1)
        if joints.size and not finite.any():
            raise InputError(f"{name}: the poses are NaN everywhere")
        if scores is not None and np.shape(scores) != joints.shape[:-1]:
            raise InputError(f"{name}: scores must be one for each joint, {joints.shape[:-1]}; got {np.shape(scores)}")
        found = seen_scores(joints, scores)
        return cls(name, np.where(found[..., None] > 0, joints, 0).astype(np.float32), found, image_shape=image_shape)

    def part(self, start: int, stop: int, name: str) -> Video:
        """The frames from `start` to before `stop`, as a video of its own. It has no film, as that begins elsewhere."""
        return replace(self, name=name, joints=self.joints[:, start:stop], scores=self.scores[:, start:stop], film=None)


def seen_scores(joints: NDArray, scores: NDArray | None) -> NDArray[np.float32]:
    """Scores (...) of joints (..., C), 0 where one is missing; without scores those at 0 are missing, which stands for it then."""
    finite = np.isfinite(joints).all(-1)
    if scores is None:
        return (finite & (joints != 0).any(-1)).astype(np.float32)
    return np.where(finite, np.nan_to_num(np.asarray(scores, np.float32)).clip(0), 0)


def check_video(video: Video, layout: Skeleton, clip: ClipSettings, *, needs_people: bool = True) -> None:
    """Raises `InputError`, which names the video, unless it can be used with these settings.

    needs_people: whether there must be someone, which a model that looks at the film does not need.
    """
    if video.joints.ndim != 4 or video.joints.shape[2] != layout.num_joints:
        got = video.joints.shape[2] if video.joints.ndim == 4 else f"an array of {video.joints.shape}"
        raise InputError(f"{video.name}: poses in the layout {layout.name} have {layout.num_joints} joints; got {got}")
    if video.num_frames < 2:
        raise InputError(f"{video.name}: has {video.num_frames or 'no'} frame{'' if video.num_frames else 's'}; an action takes 2 or more")
    if video.scores.shape != video.joints.shape[:3]:
        raise InputError(f"{video.name}: scores must be one for each joint, {video.joints.shape[:3]}; got {video.scores.shape}")
    if video.joints.shape[3] != clip.dimensions:
        wanted = {2: "2D joints in pixels", 3: "3D joints in metres"}[clip.dimensions]
        raise InputError(f"{video.name}: the coordinates {clip.coordinates!r} are for {wanted}; got {video.joints.shape[3]} of a joint")
    if clip.coordinates == "picture" and video.image_shape is None:
        raise InputError(f"{video.name}: does not say how large its pictures are, and the coordinates 'picture' need that")
    there = video.scores > 0
    if needs_people and not there.any():
        raise InputError(f"{video.name}: there is no one in any frame")
    if clip.dimensions == 2 and there.any() and float(np.abs(video.joints[there]).max()) <= UNITS:
        raise InputError(f"{video.name}: joints must be in pixels; none lies further than {UNITS} from the corner: are they normalised?")
    if clip.coordinates == "start" and layout != NTU25:
        raise InputError(f"{video.name}: the coordinates 'start' are for the layout {NTU25.name}; got {layout.name}")


def prepared(video: Video, clip: ClipSettings) -> Video:
    """The video before clips are cut from it. With the coordinates "start" it is placed as a whole, as pyskl does it, and loses
    the frames without the main person."""
    if clip.coordinates != "start":
        return video
    joints = normalise_3d(video.joints[:2])
    return replace(video, joints=joints, scores=(joints != 0).any(-1).astype(np.float32), film=None)


# --- which frames ---


def draw_frames(num_frames: int, clip: ClipSettings, augment: AugmentSettings, rng: np.random.Generator) -> NDArray[np.int64]:
    """The frames of one clip for training: `clip.frames` numbers."""
    if clip.window is None:
        return uniform_sample(num_frames, clip.frames, rng)
    span = max(clip.frames, round(clip.window * (1 + rng.uniform(-1, 1) * augment.speed)))
    length = min(num_frames, span)
    if rng.random() < augment.shorten:
        length = min(length, max(2, round(clip.window * rng.uniform(0.5, 1.0))))
    return rng.integers(num_frames - length + 1) + back_and_forth(clip.frames, span, length)


def test_frames(num_frames: int, clip: ClipSettings, num_clips: int) -> NDArray[np.int64]:
    """The frames of a video's clips for testing: clips, `clip.frames`. With a window, clips lie half a window apart and reach
    both ends of the video, whatever `num_clips` is."""
    if clip.window is None:
        return uniform_sample_test(num_frames, clip.frames, num_clips)
    length = min(num_frames, clip.window)
    starts = np.linspace(0, num_frames - length, 1 + math.ceil((num_frames - length) / max(1, clip.window // 2))).round().astype(np.int64)
    return starts[:, None] + back_and_forth(clip.frames, clip.window, length)


def back_and_forth(frames: int, span: int, length: int) -> NDArray[np.int64]:
    """`frames` numbers evenly from 0 to below `span`, turned back at both ends of `length`."""
    index = np.arange(frames) * span // frames
    period = max(1, 2 * length - 2)
    index = index % period
    return np.where(index < length, index, period - index)


# --- whose joints, and where ---


def surest(video: Video, people: int) -> Video:
    """The video with its `people` surest tracks, the surest first, and empty ones where there are fewer."""
    order = np.argsort(-video.scores.sum((1, 2), dtype=np.float64), kind="stable")[:people]
    joints, scores = video.joints[order], video.scores[order]
    missing = people - len(order)
    if missing:
        joints = np.concatenate([joints, np.zeros((missing, *joints.shape[1:]), joints.dtype)])
        scores = np.concatenate([scores, np.zeros((missing, *scores.shape[1:]), scores.dtype)])
    return replace(video, joints=joints, scores=scores)


def placed(
    video: Video, frames: NDArray[np.int64], clip: ClipSettings, layout: Skeleton
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A clip of a prepared video as the model takes it: joints M, T, J, C in its coordinates, 0 where missing, and scores M, T, J."""
    video = surest(video, clip.people)
    joints = video.joints[:, frames].astype(np.float32)
    scores = video.scores[:, frames].astype(np.float32)
    there = scores[..., None] > 0
    if clip.coordinates == "picture":
        height, width = cast(tuple[int, int], video.image_shape)
        joints = ((joints - np.array([width, height]) / 2) / (max(width, height) / 2)).astype(np.float32)
    elif clip.coordinates == "people":
        joints = crop_to_people(np.where(there, joints, 0), video.image_shape or (1, 1), 2) - 1
    elif clip.coordinates == "body":
        joints, seen = to_body(joints, scores, layout, clip.up)
        there, scores = there & seen[..., None, None], scores * seen[..., None]
    return np.where(there, joints, 0).astype(np.float32), scores


def to_body(
    joints: NDArray[np.float32], scores: NDArray[np.float32], layout: Skeleton, up: str = "y"
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Poses in each body's own space, frame by frame, so that a stream can do the same: the middle of the hips at 0, +y up, the
    left hip towards +x. A mirror image of the person is then x negated.

    Args:
        joints: ..., J, 3; scores: ..., J.
        up: axis that points up.

    Returns:
        joints ..., J, 3; and ...: whether both hips are there, as without them a pose has no place.
    """
    hips = [layout.names.index("left_hip"), layout.names.index("right_hip")]
    joints = joints[..., {"x": [1, 0, 2], "y": [0, 1, 2], "z": [0, 2, 1]}[up]] * np.array([1, 1, 1 if up == "y" else -1], np.float32)
    left, right = joints[..., hips[0], :], joints[..., hips[1], :]
    across = left - right
    length = np.hypot(across[..., 0], across[..., 2])
    cosine, sine = (
        np.where(length > 1e-6, across[..., i] / np.maximum(length, 1e-6), lying)[..., None] for i, lying in ((0, 1.0), (2, 0.0))
    )
    centred = joints - ((left + right) / 2)[..., None, :]
    x, z = centred[..., 0] * cosine + centred[..., 2] * sine, centred[..., 2] * cosine - centred[..., 0] * sine
    return np.stack([x, centred[..., 1], z], -1).astype(np.float32), np.asarray((scores[..., hips] > 0).all(-1))


# --- what training changes at random ---


def augmented(
    joints: NDArray[np.float32],
    scores: NDArray[np.float32],
    clip: ClipSettings,
    augment: AugmentSettings,
    layout: Skeleton,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """A placed clip, mirrored, turned, scaled and jittered."""
    there = scores[..., None] > 0
    if augment.mirror and rng.random() < 0.5:
        joints, scores, there = layout.flip(joints), scores[..., layout.mirror], there[..., layout.mirror, :]
    if clip.dimensions == 3 and augment.turn:
        angle = math.radians(rng.uniform(-augment.turn, augment.turn))
        axes = (0, 1) if clip.coordinates == "start" else (0, 2)
        turned = joints.copy()
        turned[..., axes[0]] = joints[..., axes[0]] * math.cos(angle) - joints[..., axes[1]] * math.sin(angle)
        turned[..., axes[1]] = joints[..., axes[0]] * math.sin(angle) + joints[..., axes[1]] * math.cos(angle)
        joints = turned
    joints = joints * (1 + rng.uniform(-augment.scale, augment.scale))
    if augment.noise:
        joints = joints + rng.normal(0, augment.noise, joints.shape).astype(np.float32)
    return np.where(there, joints, 0).astype(np.float32), scores
