"""A person who walks, made on the fly: motion for demonstrations and tests where no recording is at hand."""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from vsuite.video_pose.lift.videos import Poses
from vsuite.video_pose.skeletons import H36M17

STEP = 1.1  # seconds for two steps
SPEED = 1.2  # metres a second
# Bones in metres, from the parent: y up, left at +x, facing +z. About as in CMU's recordings, whose joints sit low in the trunk.
BONES = {
    "right_hip": (-0.095, -0.10, 0.02),
    "right_knee": (0.0, -0.43, 0.0),
    "right_ankle": (0.0, -0.41, 0.0),
    "left_hip": (0.095, -0.10, 0.02),
    "left_knee": (0.0, -0.43, 0.0),
    "left_ankle": (0.0, -0.41, 0.0),
    "spine": (0.0, 0.115, 0.0),
    "thorax": (0.0, 0.115, 0.0),
    "neck": (0.0, 0.175, 0.0),
    "head": (0.0, 0.09, 0.02),
    "left_shoulder": (0.20, 0.045, -0.01),
    "left_elbow": (0.02, -0.28, -0.01),
    "left_wrist": (0.02, -0.19, 0.0),
    "right_shoulder": (-0.20, 0.045, -0.01),
    "right_elbow": (-0.02, -0.28, -0.01),
    "right_wrist": (-0.02, -0.19, 0.0),
}


def make_walk(seconds: float = 5.0, fps: float = 60.0, *, radius: float = 2.0, seed: int = 0) -> Poses:
    """Somebody who walks in a circle.

    Args:
        seconds, fps: length, and frames a second.
        radius: of the circle, metres.
        seed: of how far arms and legs swing and where the walk begins.

    Returns:
        (T, 17, 3) in the layout h36m17, world, metres, y up, with bones of fixed length.
    """
    rng = np.random.default_rng(seed)
    time = np.arange(round(seconds * fps)) / fps
    phase = 2 * np.pi * (time / STEP + rng.random())
    heading = SPEED / radius * time + 2 * np.pi * rng.random()
    legs, arms, lean = rng.uniform(24, 32), rng.uniform(18, 40), rng.uniform(2, 6)
    # Degrees about the axis across the body (positive: what hangs swings backwards), each in its parent's frame.
    swings = {"spine": np.full_like(phase, lean)}
    for side, offset in (("left", 0.0), ("right", np.pi)):
        swings[f"{side}_hip"] = -legs * np.sin(phase + offset)
        swings[f"{side}_knee"] = 8 + 50 * np.clip(np.sin(phase + offset - 0.9 + np.pi / 2), 0, None) ** 2
        swings[f"{side}_shoulder"] = arms * np.sin(phase + offset)
        swings[f"{side}_elbow"] = -25 - 12 * np.clip(-np.sin(phase + offset), 0, None)
    poses = np.zeros((len(time), H36M17.num_joints, 3))
    height = 0.97 + 0.02 * np.cos(2 * phase)
    poses[:, 0] = np.stack([radius * np.cos(heading), height, -radius * np.sin(heading)], axis=1)
    turns = {0: Rotation.from_euler("y", heading[:, None] + np.pi)}
    for joint in _from_root():
        parent, name = H36M17.parents[joint], H36M17.names[joint]
        poses[:, joint] = poses[:, parent] + turns[parent].apply(np.array(BONES[name]))
        turns[joint] = turns[parent] * Rotation.from_euler("x", swings.get(name, np.zeros_like(phase))[:, None], degrees=True)
    return poses.astype(np.float32)


def _from_root() -> list[int]:
    """The joints but the root, each after its parent."""
    order = [H36M17.root]
    for joint in order:
        order += [child for child, parent in H36M17.bones if parent == joint]
    return order[1:]
