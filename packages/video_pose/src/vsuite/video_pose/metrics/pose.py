"""Metrics of 3D poses by name, as VideoPose3D and MPI-INF-3DHP define them.

Poses are (T, J, 3) of one video, in metres. Errors come back in metres too (`evaluate_poses` prints millimetres), shares in per
cent. Papers number protocols differently, so that names are the only safe way to quote a figure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

Poses = NDArray[np.floating]

PCK_THRESHOLD = 0.15  # metres
AUC_THRESHOLDS = np.arange(0, 151, 5) / 1000  # 31 of them


def _pair(prediction: Poses, truth: Poses) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if prediction.shape != truth.shape or prediction.ndim != 3 or prediction.shape[-1] != 3 or prediction.size == 0:
        raise InputError(f"predicted and true poses must be (T, J, 3) of one shape; got {prediction.shape} and {truth.shape}")
    if not (np.isfinite(prediction).all() and np.isfinite(truth).all()):
        raise InputError("predicted or true poses hold NaN or infinite coordinates")
    return prediction.astype(np.float64), truth.astype(np.float64)


def joint_errors(prediction: Poses, truth: Poses) -> NDArray[np.float64]:
    """Distances (T, J) between predicted and true joints."""
    p, t = _pair(prediction, truth)
    return np.linalg.norm(p - t, axis=-1)


def mpjpe(prediction: Poses, truth: Poses, weights: Poses | None = None) -> float:
    """Mean per-joint position error; `weights`, broadcast to (T, J), multiply the distances before the mean."""
    errors = joint_errors(prediction, truth)
    return float((errors if weights is None else errors * weights).mean())


def p_mpjpe(prediction: Poses, truth: Poses) -> float:
    """MPJPE after each predicted pose has been moved, turned and scaled onto the true one (see `align`)."""
    return mpjpe(align(prediction, truth), truth)


def n_mpjpe(prediction: Poses, truth: Poses) -> float:
    """MPJPE after each predicted pose has been scaled, about the origin, as fits the true one best; a pose of zeros stays."""
    p, t = _pair(prediction, truth)
    power = (p * p).sum((1, 2), keepdims=True)
    scale = (t * p).sum((1, 2), keepdims=True) / np.where(power > 0, power, 1)
    return mpjpe(scale * p, t)


def mpjve(prediction: Poses, truth: Poses) -> float:
    """Mean per-joint velocity error: MPJPE of the differences between successive frames, per frame and not per second."""
    p, t = _pair(prediction, truth)
    if len(p) < 2:
        raise InputError("MPJVE needs 2 or more successive frames; got 1")
    return mpjpe(np.diff(p, axis=0), np.diff(t, axis=0))


def pck(prediction: Poses, truth: Poses, threshold: float = PCK_THRESHOLD) -> float:
    """Per cent of the joints that are less than `threshold` away from the truth."""
    return 100 * float((joint_errors(prediction, truth) < threshold).mean())


def auc(prediction: Poses, truth: Poses) -> float:
    """Mean of `pck` over the thresholds 0, 5, ..., 150 mm, per cent."""
    errors = joint_errors(prediction, truth)
    return 100 * float(np.mean([(errors < threshold).mean() for threshold in AUC_THRESHOLDS]))


def align(prediction: Poses, truth: Poses) -> NDArray[np.float64]:
    """Each predicted pose under the similarity (no mirror) that brings it nearest to the true one: (T, J, 3).

    Where all joints of a prediction are in one place no turn or scale is defined: they are moved to the centre of the truth.
    """
    p, t = _pair(prediction, truth)
    p_mean, t_mean = p.mean(1, keepdims=True), t.mean(1, keepdims=True)
    p, t = p - p_mean, t - t_mean
    u, sizes, vt = np.linalg.svd(t.transpose(0, 2, 1) @ p)  # T, 3, 3
    proper = np.sign(np.linalg.det(u) * np.linalg.det(vt))  # -1 where the best orthogonal map is a mirror
    vt[:, -1] *= proper[:, None]
    sizes[:, -1] *= proper
    power = (p * p).sum((1, 2))
    scale = sizes.sum(1) / np.where(power > 0, power, 1)
    return scale[:, None, None] * p @ (u @ vt).transpose(0, 2, 1) + t_mean


METRICS = {"mpjpe": mpjpe, "p_mpjpe": p_mpjpe, "n_mpjpe": n_mpjpe, "mpjve": mpjve, "pck": pck, "auc": auc}
UNITS = {"mpjpe": "mm", "p_mpjpe": "mm", "n_mpjpe": "mm", "mpjve": "mm per frame", "pck": "%", "auc": "%"}
DEFINITIONS = {
    "mpjpe": "mean distance between predicted and true joints, both relative to the root",
    "p_mpjpe": "MPJPE after the similarity (turn without mirror, scale, shift) that fits each predicted pose to the true one best",
    "n_mpjpe": "MPJPE after the scale about the root that fits each predicted pose to the true one best",
    "mpjve": "mean distance between the differences from frame to frame of predicted and of true joints, per frame",
    "pck": "share of the joints that are less than 150 mm away from the truth",
    "auc": "mean over the thresholds 0, 5, ..., 150 mm of the share of the joints that are less than that away from the truth",
}


@dataclass(frozen=True)
class PoseReport:
    """What `evaluate_poses` found; units as in `UNITS`.

    Attributes:
        average: metric -> unweighted mean over actions.
        actions: action -> metric -> mean over its videos, weighted by their frames.
        joints: MPJPE of each joint, mm, averaged as `average` is.
        num_frames: evaluated in all.
    """

    average: dict[str, float]
    actions: dict[str, dict[str, float]]
    joints: list[float]
    num_frames: int


def evaluate_poses(videos: Iterable[tuple[str, Poses, Poses]]) -> PoseReport:
    """Human3.6M's protocol: means weighted by frames over the videos of an action, then the plain mean over actions.

    Args:
        videos: (name, predicted, true), poses (T, J, 3) in metres, T of 2 or more; the action is the name up to the first space.

    Raises:
        InputError: for no videos, poses that do not fit or are not finite (naming the video), and skeletons that differ.
    """
    rows: dict[str, list[tuple[int, dict[str, float], NDArray[np.float64]]]] = defaultdict(list)
    for name, prediction, truth in videos:
        try:
            figures = {metric: measure(prediction, truth) for metric, measure in METRICS.items()}
        except InputError as error:
            raise InputError(f"video {name!r}: {error}") from error
        figures = {metric: 1000 * value if UNITS[metric].startswith("mm") else value for metric, value in figures.items()}
        rows[name.split(" ")[0]].append((len(truth), figures, 1000 * joint_errors(prediction, truth).mean(0)))
    if len({len(joints) for videos_of in rows.values() for _, _, joints in videos_of}) != 1:
        raise InputError("there must be one or more videos, all with the same number of joints")
    actions, joints_of = {}, []
    for action, found in rows.items():
        frames = [count for count, _, _ in found]
        actions[action] = {m: float(np.average([figures[m] for _, figures, _ in found], weights=frames)) for m in METRICS}
        joints_of.append(np.average([joints for _, _, joints in found], axis=0, weights=frames))
    average = {m: float(np.mean([figures[m] for figures in actions.values()])) for m in METRICS}
    total = sum(count for found in rows.values() for count, _, _ in found)
    return PoseReport(average, actions, np.mean(joints_of, axis=0).tolist(), total)
