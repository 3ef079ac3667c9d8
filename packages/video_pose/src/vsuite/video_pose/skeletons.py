"""Joint layouts as types: which joint has which number, what it hangs on, and what is its mirror image.

A pose means nothing without its layout: COCO and Human3.6M both have 17 joints, in other orders.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vsuite.core.errors import InputError, unknown

Poses = TypeVar("Poses", NDArray, Tensor)


@dataclass(frozen=True)
class Skeleton:
    """A joint layout.

    Attributes:
        name: such as "h36m17".
        names: of the joints, in order.
        parents: of each joint, -1 for the root; what bones are drawn between.
        left, right: joints of the left and of the right side of the body, pair by pair.
    """

    name: str
    names: tuple[str, ...]
    parents: tuple[int, ...]
    left: tuple[int, ...]
    right: tuple[int, ...]

    @property
    def num_joints(self) -> int:
        return len(self.names)

    @property
    def root(self) -> int:
        """The joint that has no parent."""
        return self.parents.index(-1)

    @property
    def bones(self) -> tuple[tuple[int, int], ...]:
        """(joint, parent) of every joint but the root."""
        return tuple((joint, parent) for joint, parent in enumerate(self.parents) if parent >= 0)

    @property
    def mirror(self) -> list[int]:
        """For each joint the one that takes its place in a mirror."""
        order = list(range(self.num_joints))
        for left, right in zip(self.left, self.right, strict=True):
            order[left], order[right] = right, left
        return order

    def check(self, poses: Poses) -> None:
        """Raises `InputError` unless `poses` is (..., J, C) with this layout's number of joints."""
        if poses.ndim < 2 or poses.shape[-2] != self.num_joints:
            raise InputError(f"poses in the layout {self.name} are (..., {self.num_joints}, C); got {tuple(poses.shape)}")

    def flip(self, poses: Poses) -> Poses:
        """The poses in a mirror: x negated, left and right exchanged. Twice is the identity.

        poses: (..., J, C), an array or a tensor, x first and 0 in the middle of the picture -> a copy of the same shape.
        """
        self.check(poses)
        flipped = poses[..., self.mirror, :]
        flipped[..., 0] *= -1
        return flipped


def _skeleton(name: str, tree: str) -> Skeleton:
    """A layout from "joint<parent" words in order; "left_x" and "right_x" are pairs."""
    pairs = [word.split("<") for word in tree.split()]
    names = [joint for joint, _ in pairs]
    left = [joint for joint in names if joint.startswith("left_")]
    return Skeleton(
        name,
        tuple(names),
        tuple(names.index(parent) if parent else -1 for _, parent in pairs),
        tuple(names.index(joint) for joint in left),
        tuple(names.index(joint.replace("left_", "right_")) for joint in left),
    )


H36M17 = _skeleton(
    "h36m17",
    """pelvis< right_hip<pelvis right_knee<right_hip right_ankle<right_knee left_hip<pelvis left_knee<left_hip left_ankle<left_knee
    spine<pelvis thorax<spine neck<thorax head<neck left_shoulder<thorax left_elbow<left_shoulder left_wrist<left_elbow
    right_shoulder<thorax right_elbow<right_shoulder right_wrist<right_elbow""",
)
_COCO = """left_eye<nose right_eye<nose left_ear<left_eye right_ear<right_eye"""
_LIMBS = """left_elbow<left_shoulder right_elbow<right_shoulder left_wrist<left_elbow right_wrist<right_elbow {hips}
    left_knee<left_hip right_knee<right_hip left_ankle<left_knee right_ankle<right_knee"""
COCO17 = _skeleton(
    "coco17",
    f"nose< {_COCO} left_shoulder<nose right_shoulder<nose " + _LIMBS.format(hips="left_hip<left_shoulder right_hip<right_shoulder"),
)
HALPE26 = _skeleton(
    "halpe26",
    f"nose<neck {_COCO} left_shoulder<neck right_shoulder<neck "
    + _LIMBS.format(hips="left_hip<pelvis right_hip<pelvis")
    + """ head<nose neck<pelvis pelvis< left_big_toe<left_ankle right_big_toe<right_ankle left_small_toe<left_ankle
    right_small_toe<right_ankle left_heel<left_ankle right_heel<right_ankle""",
)
NTU25 = _skeleton(
    "ntu25",
    """spine_base<spine_middle spine_middle<spine_shoulders neck<spine_shoulders head<neck
    left_shoulder<spine_shoulders left_elbow<left_shoulder left_wrist<left_elbow left_hand<left_wrist
    right_shoulder<spine_shoulders right_elbow<right_shoulder right_wrist<right_elbow right_hand<right_wrist
    left_hip<spine_base left_knee<left_hip left_ankle<left_knee left_foot<left_ankle
    right_hip<spine_base right_knee<right_hip right_ankle<right_knee right_foot<right_ankle
    spine_shoulders< left_hand_tip<left_thumb left_thumb<left_hand right_hand_tip<right_thumb right_thumb<right_hand""",
)
OPENPOSE18 = _skeleton(
    "openpose18",
    """nose<neck neck< right_shoulder<neck right_elbow<right_shoulder right_wrist<right_elbow
    left_shoulder<neck left_elbow<left_shoulder left_wrist<left_elbow right_hip<neck right_knee<right_hip right_ankle<right_knee
    left_hip<neck left_knee<left_hip left_ankle<left_knee right_eye<nose left_eye<nose right_ear<right_eye left_ear<left_eye""",
)
BODY25 = _skeleton(
    "body25",
    """nose<neck neck<pelvis right_shoulder<neck right_elbow<right_shoulder right_wrist<right_elbow
    left_shoulder<neck left_elbow<left_shoulder left_wrist<left_elbow pelvis<
    right_hip<pelvis right_knee<right_hip right_ankle<right_knee left_hip<pelvis left_knee<left_hip left_ankle<left_knee
    right_eye<nose left_eye<nose right_ear<right_eye left_ear<left_eye left_big_toe<left_ankle left_small_toe<left_big_toe
    left_heel<left_ankle right_big_toe<right_ankle right_small_toe<right_big_toe right_heel<right_ankle""",
)
PENN13 = _skeleton(
    "penn13",
    "head< left_shoulder<head right_shoulder<head " + _LIMBS.format(hips="left_hip<left_shoulder right_hip<right_shoulder"),
)

SKELETONS = {layout.name: layout for layout in (BODY25, COCO17, H36M17, HALPE26, NTU25, OPENPOSE18, PENN13)}


def skeleton(name: str) -> Skeleton:
    """The layout of this name; raises `InputError` that names the nearest."""
    if name not in SKELETONS:
        raise unknown("joint layout", name, SKELETONS)
    return SKELETONS[name]


# For each joint of Human3.6M the joints whose mean it is.
_LIMBS_OF_COCO = ((12,), (14,), (16,), (11,), (13,), (15,)), ((5,), (7,), (9,), (6,), (8,), (10,))  # legs, arms
_FROM_COCO = ((11, 12), *_LIMBS_OF_COCO[0], (5, 6, 11, 12), (5, 6), (0,), (1, 2), *_LIMBS_OF_COCO[1])
_FROM_HALPE = ((19,), *_LIMBS_OF_COCO[0], (18, 19), (18,), (0,), (17,), *_LIMBS_OF_COCO[1])
# OpenPose has no top of the head either, and its neck is the middle of the shoulders, as is COCO's thorax here.
_LIMBS_OF_OPENPOSE18 = ((8,), (9,), (10,), (11,), (12,), (13,)), ((5,), (6,), (7,), (2,), (3,), (4,))
_FROM_OPENPOSE18 = ((8, 11), *_LIMBS_OF_OPENPOSE18[0], (2, 5, 8, 11), (1,), (0,), (14, 15), *_LIMBS_OF_OPENPOSE18[1])
_LIMBS_OF_BODY25 = ((9,), (10,), (11,), (12,), (13,), (14,)), ((5,), (6,), (7,), (2,), (3,), (4,))
_FROM_BODY25 = ((8,), *_LIMBS_OF_BODY25[0], (1, 8), (1,), (0,), (15, 16), *_LIMBS_OF_BODY25[1])


def coco_to_h36m(poses: NDArray) -> NDArray:
    """COCO-17 -> Human3.6M-17. The head is the mean of the eyes, lower than in Human3.6M, as COCO has nothing above them.

    poses: (..., 17, C); further channels such as confidences are averaged like coordinates -> the same shape.
    """
    COCO17.check(poses)
    return _means(poses, _FROM_COCO)


def halpe_to_h36m(poses: NDArray) -> NDArray:
    """Halpe-26 -> Human3.6M-17: (..., 26, C) -> (..., 17, C); channels as in `coco_to_h36m`."""
    HALPE26.check(poses)
    return _means(poses, _FROM_HALPE)


def openpose18_to_h36m(poses: NDArray) -> NDArray:
    """OpenPose's COCO model, 18 joints -> Human3.6M-17, by the rules of `coco_to_h36m`: (..., 18, C) -> (..., 17, C)."""
    OPENPOSE18.check(poses)
    return _means(poses, _FROM_OPENPOSE18)


def body25_to_h36m(poses: NDArray) -> NDArray:
    """OpenPose's BODY_25 -> Human3.6M-17, by the rules of `halpe_to_h36m` with the head of `coco_to_h36m`: (..., 25, C) -> (..., 17, C)."""
    BODY25.check(poses)
    return _means(poses, _FROM_BODY25)


def _means(poses: NDArray, sources: Sequence[tuple[int, ...]]) -> NDArray:
    return np.stack([poses[..., list(joints), :].mean(-2) for joints in sources], axis=-2)


_CONVERSIONS = {
    (COCO17.name, H36M17.name): coco_to_h36m,
    (HALPE26.name, H36M17.name): halpe_to_h36m,
    (OPENPOSE18.name, H36M17.name): openpose18_to_h36m,
    (BODY25.name, H36M17.name): body25_to_h36m,
}


def convert(poses: NDArray, source: Skeleton, target: Skeleton) -> NDArray:
    """Poses of one layout in another: (..., J, C) -> (..., J', C).

    Raises:
        InputError: for another number of joints than the source has, and where there is no such conversion.
    """
    source.check(poses)
    if source == target:
        return poses
    if (source.name, target.name) not in _CONVERSIONS:
        known = ", ".join(f"{before} -> {after}" for before, after in _CONVERSIONS)
        raise InputError(f"no conversion from the layout {source.name} to {target.name}; there is {known}")
    return _CONVERSIONS[source.name, target.name](poses)
