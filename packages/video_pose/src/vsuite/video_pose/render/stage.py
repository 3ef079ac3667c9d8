"""What films and pages of 3D poses share: which way is up, where the ground is, and the colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError, unknown
from vsuite.video_pose.skeletons import Skeleton

Up = Literal["-y", "y", "z"]
People = NDArray[np.floating] | Sequence[NDArray[np.floating]]

# Red, green, blue. Left and right keep theirs on every ground; the people's own are told apart by those who see few colours.
LEFT, RIGHT, MIDDLE = (47, 157, 244), (244, 119, 47), (150, 156, 168)
PERSON_COLOURS = ((47, 157, 244), (244, 119, 47), (52, 190, 130), (204, 121, 200), (230, 190, 40), (120, 130, 240), (225, 85, 95))


@dataclass(frozen=True)
class Stage:
    """Poses with z up and the ground at z = 0.

    Attributes:
        people: (T, J, 3) float32 each, all of one T; NaN where a joint is absent.
        centre: middle of what all joints fill. radius: of a sphere about it that holds them.
    """

    people: list[NDArray[np.float32]]
    centre: NDArray[np.float64]
    radius: float


def people_of(poses: People, skeleton: Skeleton, dims: Sequence[int]) -> list[NDArray[np.float32]]:
    """Poses of one person (T, J, C) or of several (a sequence of these), as a list; what is infinite counts as absent, NaN.

    Raises:
        InputError: for other shapes, another number of joints than the layout's, and people of different lengths.
    """
    several = list(poses) if not isinstance(poses, np.ndarray) or poses.ndim == 4 else [poses]
    if not several:
        raise InputError("there is nobody to draw: give the poses of one person at least")
    for person in several:
        if person.ndim != 3 or person.shape[2] not in dims or not len(person):
            raise InputError(f"poses to draw are T, J, {' or '.join(map(str, dims))}, one frame or more; got {tuple(person.shape)}")
        skeleton.check(person)
        if len(person) != len(several[0]):
            raise InputError(f"all people have one number of frames, NaN where they are absent; got {len(several[0])} and {len(person)}")
    drawn = [np.where(np.isfinite(person), person, np.nan).astype(np.float32) for person in several]
    if not any(np.isfinite(person).any() for person in drawn):
        raise InputError("there is nothing to draw: no joint has a finite place in any frame")
    return drawn


def set_stage(poses: People, skeleton: Skeleton, up: Up) -> Stage:
    """3D poses turned to z up, on the ground that the lowest joint touches.

    Args:
        up: the axis that points up: "-y" in a camera's frame (y down, z ahead), "y" or "z" in a world's.
    """
    if up not in get_args(Up):
        raise unknown("axis", up, get_args(Up))
    people = [_upright(person, up) for person in people_of(poses, skeleton, (3,))]
    joints = np.concatenate([person.reshape(-1, 3) for person in people])
    joints = joints[np.isfinite(joints).all(axis=1)].astype(np.float64)
    if not len(joints):
        raise InputError("there is nothing to draw: no joint has a finite place in any frame")
    ground = joints[:, 2].min()
    low, high = joints.min(axis=0), joints.max(axis=0)
    centre = (low + high) / 2 - (0, 0, ground)
    radius = float(np.linalg.norm(high - low)) / 2 or 1.0
    return Stage([person - np.array([0, 0, ground], np.float32) for person in people], centre, radius)


def _upright(person: NDArray[np.float32], up: Up) -> NDArray[np.float32]:
    x, y, z = np.moveaxis(person, -1, 0)
    if up == "z":
        return person
    return np.stack([x, z, -y], axis=-1) if up == "-y" else np.stack([x, -z, y], axis=-1)


def side_colours(skeleton: Skeleton, middle: tuple[int, int, int] = MIDDLE) -> list[tuple[int, int, int]]:
    """A colour of each joint, and of the bone from it to its parent."""
    return [LEFT if joint in skeleton.left else RIGHT if joint in skeleton.right else middle for joint in range(skeleton.num_joints)]


def grid_step(radius: float) -> float:
    """Distance between the lines of the ground: 1, 2 or 5 times a power of ten, some eight of them across the stage."""
    rough = radius / 4
    power = 10.0 ** np.floor(np.log10(rough))
    return float(power * next(factor for factor in (1, 2, 5, 10) if rough <= factor * power * (1 + 1e-9)))
