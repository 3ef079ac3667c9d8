"""Skeleton data against published implementations."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from vsuite.video_pose.data.ntu import read_bodies, read_skeleton
from vsuite.video_pose.data.skeleton_ops import (
    COCO_LIMBS,
    heatmap_volume,
    normalise_2d,
    normalise_3d,
    streams,
    uniform_sample_test,
    with_mirrored,
)
from vsuite.video_pose.metrics.actions import average_clips, mean_class_accuracy, top_k_accuracy
from vsuite.video_pose.skeletons import COCO17, NTU25, coco_to_h36m, halpe_to_h36m


def test_to_h36m(load_case) -> None:
    case = load_case("pose_data/to_h36m")
    inputs = case.inputs()
    case.check({"coco": coco_to_h36m(inputs["coco"]), "halpe": halpe_to_h36m(inputs["halpe"])})


def test_accuracy(load_case) -> None:
    case = load_case("pose_data/accuracy")
    scores, labels = case.inputs()["scores"], case.inputs()["labels"]
    case.check(
        {
            "acc": [*(top_k_accuracy(scores, labels, k) for k in (1, 2, 5)), mean_class_accuracy(scores, labels)],
            "clip_prob": average_clips(scores, 5),
            "clip_score": average_clips(scores, 5, average="score"),
        }
    )


def scored_poses(inputs: dict, shape: list[int]) -> tuple[np.ndarray, np.ndarray]:
    height, width = shape
    keypoint = inputs["keypoint"] * np.array([width + 4, height + 4], np.float32) - 2
    return keypoint, np.where(inputs["score"] < 0.1, 0, inputs["score"])


def test_heatmaps(load_case) -> None:
    case = load_case("pose_data/heatmaps")
    shape = case.meta["config"]["img_shape"]
    keypoint, score = scored_poses(case.inputs(), shape)
    case.check(
        {
            "joint": heatmap_volume(keypoint, score, shape),
            "limb": heatmap_volume(keypoint, score, shape, limbs=COCO_LIMBS),
            "joint_double_scaled": with_mirrored(heatmap_volume(keypoint, score, shape, scaling=0.5, sigma=0.7), COCO17),
            "joint_noscore": heatmap_volume(keypoint, None, shape),
        }
    )


def test_normalise_2d(load_case) -> None:
    case = load_case("pose_data/prenormalize2d")
    shape = case.meta["config"]["img_shape"]
    keypoint, score = scored_poses(case.inputs(), shape)
    case.check({mode: normalise_2d(keypoint, score, shape, mode=mode) for mode in ("fix", "auto")})


def test_normalise_3d_and_streams(load_case) -> None:
    case = load_case("pose_data/prenormalize3d_features")
    keypoint = case.inputs()["keypoint"]
    keypoint[..., 1] += 0.3
    keypoint[:, 2] = 0
    keypoint[1, :4] = 0
    normalised = normalise_3d(keypoint)
    case.check({"normalised": normalised, "features": np.concatenate(list(streams(normalised, NTU25).values()), -1)})


def test_uniform_sampling(load_case) -> None:
    case = load_case("pose_data/uniform_sample_test")
    names = {name: [int(part[1:]) for part in name.split("_")] for name in case.meta["outputs"]}
    clip_length = case.meta["config"]["clip_len"]
    case.check({name: uniform_sample_test(frames, clip_length, clips).ravel() for name, (frames, clips) in names.items()})


def write_skeleton(path: Path, frames: int, empty: int) -> Path:
    lines = [str(frames)]
    for f in range(frames):
        bodies = [] if f == empty else [0] + [1] * (5 <= f <= 24) + [2] * (f <= 7)
        lines.append(str(len(bodies)))
        for b in bodies:
            lines += [f"{b} 0 1 1 1 1 0 0.1 0.2 2", "25"]
            for j in range(25):
                x, y = (b + 1) * 0.2 * math.sin(0.3 * j + 0.05 * f * (b + 1)), 0.9 * math.cos(0.21 * j + b)
                lines.append(f"{x:.4f} {y:.4f} {3 + 0.01 * f + 0.1 * b:.4f} 1 2 3 4 0 0 0 1 2")
    path.write_text("\n".join(lines) + "\n")
    return path


def test_ntu_skeleton(load_case, tmp_path: Path) -> None:
    case = load_case("pose_data/ntu_skeleton")
    config = case.meta["config"]
    path = write_skeleton(tmp_path / "S001C001P001R001A050.skeleton", config["frames"], config["zero_body_frame"])
    bodies, _ = read_bodies(path)
    case.check({"keypoint": read_skeleton(path).astype(np.float32), "motion": [body.motion for body in bodies]})
