"""Small made-up data for the tests of actions: people who wave, kick or stand, in 3D and in 2D, and videos of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.video_pose.skeletons import COCO17, H36M17

CLASSES = ["kicking", "standing", "waving"]
# Metres, y up, facing +z, left to +x.
STANDING = np.array(
    [
        (0, 0.95, 0), (-0.1, 0.95, 0), (-0.1, 0.5, 0), (-0.1, 0.05, 0), (0.1, 0.95, 0), (0.1, 0.5, 0), (0.1, 0.05, 0), (0, 1.2, 0),
        (0, 1.45, 0), (0, 1.55, 0), (0, 1.7, 0), (0.2, 1.4, 0), (0.25, 1.1, 0), (0.25, 0.85, 0), (-0.2, 1.4, 0), (-0.25, 1.1, 0),
        (-0.25, 0.85, 0),
    ]
)  # fmt: skip


def motion(action: str, frames: int, rng: np.random.Generator, *, turned: float = 0.0) -> NDArray[np.float32]:
    """T, 17, 3 in the layout h36m17."""
    poses = np.tile(STANDING, (frames, 1, 1))
    swing = np.sin(np.arange(frames) * 0.2 + rng.uniform(0, 6))
    if action == "waving":
        poses[:, 13] += np.stack([0.2 + 0.2 * swing, np.full(frames, 0.9), 0 * swing], -1)
        poses[:, 12] += [0.1, 0.4, 0]
    if action == "kicking":
        poses[:, 6] += np.stack([0 * swing, 0.4 * np.abs(swing), 0.6 * np.abs(swing)], -1)
    poses += rng.normal(0, 0.01, poses.shape)
    c, s = np.cos(turned), np.sin(turned)
    place = np.array([rng.uniform(-2, 2), 0, rng.uniform(-2, 2)])
    return (poses @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) + place).astype(np.float32)


def write_mocap(path: Path, *, each: int = 4, frames: int = 40) -> Path:
    """An archive of motion capture; the last class has a single sequence."""
    rng = np.random.default_rng(0)
    arrays = {}
    for action in CLASSES:
        for number in range(1 if action == "waving" else each):
            length = 3 * frames if action == "waving" else frames
            arrays[f"{action}/{action}_{number}"] = (1000 * motion(action, length, rng, turned=rng.uniform(0, 6))).astype(np.int16)
    np.savez(path, **arrays)
    return path


def keypoints(action: str, frames: int, rng: np.random.Generator, size: tuple[int, int] = (48, 64)) -> NDArray[np.float32]:
    """T, 17, 2 in the layout coco17, pixels of a picture of this (height, width)."""
    body = motion(action, frames, rng)
    body -= body[:, :1]
    order = [10, 10, 10, 10, 10, 11, 14, 12, 15, 13, 16, 4, 1, 5, 2, 6, 3]
    flat = np.stack([body[:, order, 0] + 0.5 * body[:, order, 2], -body[:, order, 1]], -1)
    assert flat.shape[1] == COCO17.num_joints == H36M17.num_joints
    return (flat * 18 + [size[1] / 2, size[0] / 2 + 2]).astype(np.float32)


def annotated_videos(each: int = 6, frames: int = 24) -> dict[str, Any]:
    """The content of a pickle of pyskl, 2D."""
    rng = np.random.default_rng(1)
    entries, splits = [], {"own_train": [], "own_val": []}
    for label, action in enumerate(CLASSES):
        for number in range(each):
            joints = keypoints(action, frames, rng)[None]
            name = f"{action}_{number}"
            entries.append(
                {"frame_dir": name, "label": label, "total_frames": frames, "img_shape": (48, 64), "keypoint": joints,
                 "keypoint_score": np.full(joints.shape[:3], 0.9, np.float32)}
            )  # fmt: skip
            splits["own_val" if number < 2 else "own_train"].append(name)
    return {"split": splits, "annotations": entries}


def write_pickle(path: Path, content: Any) -> Path:
    path.write_bytes(pickle.dumps(content))
    return path


def write_film(path: Path, joints: NDArray[np.floating], size: tuple[int, int] = (48, 64)) -> Path:
    """A video with a white square on each joint; joints: T, J, 2."""
    import cv2

    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 15, size[::-1])
    for frame in joints:
        picture = np.zeros((*size, 3), np.uint8)
        for x, y in frame.round().astype(int):
            picture[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 255
        writer.write(picture)
    writer.release()
    return path
