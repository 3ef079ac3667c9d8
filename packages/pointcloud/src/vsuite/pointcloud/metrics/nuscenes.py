"""nuScenes' average precision by centre distance, its true-positive errors, and the detection score over the errors measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vsuite.pointcloud.metrics.detection import Found, Truths, angle_gap, check_frames, class_names, is_class, mean_or_nan

DISTANCES = (0.5, 1.0, 2.0, 4.0)
ERROR_DISTANCE = 2.0
RECALLS = np.linspace(0, 1, 101)
FIRST = 11  # the first recall above 0.1
MIN_PRECISION = 0.1
WITHOUT_HEADING = {"traffic_cone"}
WITHOUT_VELOCITY = {"traffic_cone", "barrier"}
HALF_TURN = {"barrier"}  # front and back cannot be told apart


@dataclass(frozen=True)
class NuScenesRow:
    """One class: `ap` (0 to 100) for each distance in metres and their mean; errors by name (translation in m, scale as
    1 - IoU, orientation in radians, velocity in m/s), NaN where not defined for the class or not measured."""

    name: str
    ap: Mapping[float, float]
    mean_ap: float
    errors: Mapping[str, float]
    num_truths: int


@dataclass(frozen=True)
class NuScenesResult:
    """All classes. `nds` (0 to 100) counts the errors named in `counted`; the official score counts five."""

    rows: list[NuScenesRow]
    mean_ap: float
    errors: Mapping[str, float]
    nds: float
    counted: tuple[str, ...]


def nuscenes_definition(*, velocity: bool) -> str:
    """What `nuscenes_ap` computes, for people."""
    counted = "translation, scale, orientation" + (", velocity" if velocity else "")
    missing = "attributes are not predicted" + ("" if velocity else ", velocities are not given")
    return (
        "nuScenes-style average precision. Detections of a class are matched by falling score, each with the nearest free object of "
        "its frame, if the centres are closer in the plane than 0.5, 1, 2 and 4 m. AP: mean over the recalls 0.11 to 1 of precision "
        "less 0.1 (not below 0), over 0.9; averaged over the four distances, then over the classes that have objects. Objects without "
        "points are left out. Errors of true positives at 2 m, averaged over the recalls from 0.11 that are reached (1 if none is): "
        "translation in m, scale as 1 - IoU of aligned boxes, orientation in radians (barrier: up to a half turn; traffic_cone: none), "
        f"velocity in m/s. Detection score: (5 mAP + sum of (1 - min(1, error))) / (5 + number of errors), here counting {counted}; "
        f"{missing}, so the score differs from the official one over five errors."
    )


def nuscenes_ap(
    truths: Sequence[Truths], found: Sequence[Found], *, names: Sequence[str] | None = None, max_distance: Mapping[str, float] | None = None
) -> NuScenesResult:
    """nuScenes' AP, errors and detection score; `nuscenes_definition` says how.

    Args:
        truths, found: a frame each; velocity counts if all boxes have 9 columns.
        names: classes. None: those of the truth.
        max_distance: class name -> distance in the plane in metres beyond which objects and detections are left out (the official
            tool has 50 for vehicles, 40 for people and bicycles, 30 for cones and barriers). None: no limit.

    Raises:
        InputError: for damaged frames.
    """
    check_frames(truths, found)
    frames = [np.asarray(boxes) for boxes in (*(truth.boxes for truth in truths), *(some.boxes for some in found))]
    velocity = any(len(boxes) for boxes in frames) and all(boxes.shape[1] >= 9 for boxes in frames if len(boxes))
    limits = max_distance or {}
    rows = [_row(truths, found, name, velocity, limits.get(name, np.inf)) for name in names or class_names(truths)]
    counted = ("translation", "scale", "orientation", *(("velocity",) if velocity else ()))
    mean_ap = mean_or_nan(row.mean_ap for row in rows)
    errors = {error: mean_or_nan(row.errors[error] for row in rows) for error in counted}
    scores = [100 * (1 - min(1.0, value)) for value in errors.values() if not np.isnan(value)]
    return NuScenesResult(rows, mean_ap, errors, (5 * mean_ap + sum(scores)) / (5 + len(scores)), counted)


def _row(truths: Sequence[Truths], found: Sequence[Found], name: str, velocity: bool, limit: float) -> NuScenesRow:
    frames = [
        (_true_boxes(truth, name, limit), *_found_boxes(detections, name, limit)) for truth, detections in zip(truths, found, strict=True)
    ]
    num_truths = sum(len(frame[0]) for frame in frames)
    ap: dict[float, float] = {}
    errors: dict[str, float] = {}
    for distance in DISTANCES:
        scores, right, measured = _match(frames, distance, name, velocity)
        ap[distance] = _average_precision(scores, right, num_truths)
        if distance == ERROR_DISTANCE:
            errors = {error: _mean_error(scores, right, values, num_truths) for error, values in measured.items()}
    if name.lower() in WITHOUT_HEADING:
        errors["orientation"] = float("nan")
    if name.lower() in WITHOUT_VELOCITY and velocity:
        errors["velocity"] = float("nan")
    return NuScenesRow(name, ap, mean_or_nan(ap.values()), errors, num_truths)


def _nine_columns(boxes: np.ndarray) -> np.ndarray:
    """Boxes with the velocity NaN where they have none."""
    rows = np.asarray(boxes, float)[:, :9]
    return np.pad(rows, ((0, 0), (0, 9 - rows.shape[1])), constant_values=np.nan)


def _true_boxes(truth: Truths, name: str, limit: float) -> np.ndarray:
    boxes = _nine_columns(truth.boxes)
    chosen = is_class(truth.names, name) & (np.hypot(boxes[:, 0], boxes[:, 1]) < limit)
    if truth.num_points is not None:
        chosen &= np.asarray(truth.num_points) > 0
    return boxes[chosen]


def _found_boxes(found: Found, name: str, limit: float) -> tuple[np.ndarray, np.ndarray]:
    """Boxes and scores by falling score."""
    boxes, scores = _nine_columns(found.boxes), np.asarray(found.scores, float)
    chosen = is_class(found.names, name) & (np.hypot(boxes[:, 0], boxes[:, 1]) < limit)
    order = np.argsort(-scores[chosen], kind="stable")
    return boxes[chosen][order], scores[chosen][order]


def _match(
    frames: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], distance: float, name: str, velocity: bool
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Scores, whether right, and errors (NaN where wrong) of all detections by falling score."""
    names = ["translation", "scale", "orientation", *(["velocity"] if velocity else [])]
    scores, right, table = [np.zeros(0)], [np.zeros(0, bool)], [np.zeros((0, len(names)))]
    period = np.pi if name.lower() in HALF_TURN else 2 * np.pi
    for true, boxes, frame_scores in frames:
        apart = np.hypot(*(boxes[:, None, :2] - true[:, :2]).transpose(2, 0, 1))  # N, M
        partner = np.full(len(boxes), -1)
        for row in range(len(boxes)) if len(true) else ():
            nearest = int(apart[row].argmin())
            if apart[row, nearest] < distance:
                partner[row] = nearest
                apart[:, nearest] = np.inf  # taken
        matched = partner >= 0
        errors = np.full((len(boxes), len(names)), np.nan)
        errors[matched] = _errors(boxes[matched], true[partner[matched]], period, velocity)
        scores.append(frame_scores)
        right.append(matched)
        table.append(errors)
    joined = np.concatenate(scores)
    order = np.argsort(-joined, kind="stable")
    return joined[order], np.concatenate(right)[order], dict(zip(names, np.concatenate(table)[order].T, strict=True))


def _errors(found: np.ndarray, true: np.ndarray, period: float, velocity: bool) -> np.ndarray:
    """(N, 3 or 4) errors of matched boxes."""
    shared = np.prod(np.minimum(found[:, 3:6], true[:, 3:6]), 1)
    union = np.prod(found[:, 3:6], 1) + np.prod(true[:, 3:6], 1) - shared
    columns = [
        np.hypot(*(found[:, :2] - true[:, :2]).T),
        1 - shared / np.maximum(union, 1e-12),
        angle_gap(found[:, 6], true[:, 6], period),
    ]
    if velocity:
        columns.append(np.hypot(*(found[:, 7:9] - true[:, 7:9]).T))
    return np.stack(columns, 1)


def _average_precision(scores: np.ndarray, right: np.ndarray, num_truths: int) -> float:
    if num_truths == 0:
        return float("nan")
    if not right.any():
        return 0.0
    hits = right.cumsum()
    precision = np.interp(RECALLS, hits / num_truths, hits / np.arange(1, len(hits) + 1), right=0.0)
    return 100 * float(np.maximum(precision[FIRST:] - MIN_PRECISION, 0).mean()) / (1 - MIN_PRECISION)


def _mean_error(scores: np.ndarray, right: np.ndarray, errors: np.ndarray, num_truths: int) -> float:
    """Running mean of the error over the true positives so far, read at the recalls that are reached and averaged."""
    if num_truths == 0:
        return float("nan")
    if not right.any():
        return 1.0
    confidence = np.interp(RECALLS, right.cumsum() / num_truths, scores, right=0.0)
    reached = np.flatnonzero(confidence)
    if len(reached) == 0 or reached[-1] < FIRST:
        return 1.0
    known = ~np.isnan(errors[right])  # a truth's velocity may be unknown
    if not known.any():
        return 1.0
    running = np.nan_to_num(errors[right]).cumsum() / np.maximum(known.cumsum(), 1)
    at_recall = np.interp(confidence[::-1], scores[right][::-1], running[::-1])[::-1]
    return float(at_recall[FIRST : reached[-1] + 1].mean())
