"""KITTI's average precision: R11 and R40, seen from above, in 3D and in the image, with orientation."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.metrics.detection import (
    FEW_TRUTHS,
    Found,
    Truths,
    angle_gap,
    check_frames,
    class_names,
    frame_overlaps,
    is_class,
    overlaps_for,
)

NUM_SAMPLES = 41
NEIGHBOURS: Mapping[str, tuple[str, ...]] = {"car": ("van",), "pedestrian": ("person_sitting",)}
METRICS = ("bev", "3d", "image")


@dataclass(frozen=True)
class Difficulty:
    """Limits of one of KITTI's groups of objects: height of the image box in pixels, occlusion, truncation."""

    name: str
    min_height: float
    max_occlusion: int
    max_truncation: float


DIFFICULTIES = (Difficulty("easy", 40, 0, 0.15), Difficulty("moderate", 25, 1, 0.3), Difficulty("hard", 25, 2, 0.5))


@dataclass(frozen=True)
class KittiCurve:
    """Precision at 41 recalls.

    Attributes:
        thresholds: scores at which it was measured, falling; (T,) with T <= 41.
        precision, orientation: (41,), already made monotone; orientation None where no angles were given.
        num_truths: objects that count.
    """

    thresholds: np.ndarray
    precision: np.ndarray
    orientation: np.ndarray | None
    num_truths: int

    def average(self, curve: np.ndarray | None, points: int) -> float:
        """Mean in percent over 11 or 40 recalls; NaN without truths or without a curve."""
        if curve is None or self.num_truths == 0:
            return float("nan")
        return 100 * float(curve[::4].mean() if points == 11 else curve[1:].mean())


@dataclass(frozen=True)
class KittiRow:
    """One line of the table, in percent. NaN: not defined (no truths), or for orientation, not measured."""

    name: str
    metric: str
    difficulty: str
    overlap: float
    r40: float
    r11: float
    aos_r40: float
    aos_r11: float
    num_truths: int


def kitti_definition(*, camera: bool) -> str:
    """What `kitti_ap` computes, for people."""
    groups = (
        "Difficulties by the image: easy, moderate, hard = box height > 40, 25, 25 pixels, occlusion <= 0, 1, 2, truncation <= 0.15, "
        "0.3, 0.5; other objects are ignored, and so are detections less high in the image."
        if camera
        else "Without camera: no difficulties, every object of the class counts. Not comparable with figures by difficulty."
    )
    angle = "alpha" if camera else "the yaw, as there is no alpha"
    return (
        "KITTI average precision. Overlap: exact rotated IoU above 0.7 for vehicles and 0.5 for others unless given, seen from "
        f"above (bev), in 3D, or of image boxes. {groups} "
        "Objects of neighbouring classes (van for car, person_sitting for pedestrian) are ignored: neither found nor missed. "
        "Matching: object by object in the order of the file. A first pass gives each the free detection of the highest score; of the "
        "matched scores those nearest to recall steps of 1/40 become thresholds. A second pass at each threshold gives each object the "
        "free detection of the largest overlap and counts true and false positives. Precision is made monotone from the right. "
        "R40: mean of entries 1 to 40 of 41; R11: mean of every fourth of the 41. "
        f"AOS: true positives weighted by (1 + cos(difference)) / 2 of {angle}. "
        f"With fewer than {FEW_TRUTHS} objects the curve is cut and even perfect detections score low."
    )


def kitti_ap(
    truths: Sequence[Truths],
    found: Sequence[Found],
    *,
    overlaps: Mapping[str, float] | None = None,
    metrics: Sequence[str] = ("bev", "3d"),
    camera: bool = False,
) -> list[KittiRow]:
    """KITTI's average precision, a row for each class, metric and difficulty; `kitti_definition` says how.

    Args:
        truths, found: a frame each.
        overlaps: class name -> IoU that a match must exceed. None: the classes of the truth with KITTI's values.
        metrics: of "bev", "3d" and, with image boxes, "image".
        camera: group by KITTI's difficulties; needs image_boxes, truncated and occluded of the truth and image_boxes of the
            detections. Else one group, "all".

    Raises:
        InputError: for damaged frames, unknown metrics, or facts that are missing.
    """
    check_frames(truths, found)
    _check_facts(truths, found, metrics, camera)
    wanted = overlaps_for(class_names(truths), overlaps)
    groups: Sequence[Difficulty | None] = DIFFICULTIES if camera else (None,)
    frames = list(zip(truths, found, strict=True))
    gaps = _angle_gaps(frames, camera)
    rows = []
    for metric in metrics:
        shared = [_overlaps(truth, detections, metric) for truth, detections in frames]
        for name, smallest in wanted.items():
            for group in groups:
                flags = [(_truth_flags(t, name, group), _found_flags(f, name, group)) for t, f in frames]
                curve = kitti_curve(
                    shared,
                    [flag for flag, _ in flags],
                    [flag for _, flag in flags],
                    [np.asarray(detections.scores, float) for _, detections in frames],
                    smallest,
                    gaps=gaps,
                    excused=[_excused(t, f, smallest) for t, f in frames] if metric == "image" else None,
                )
                ap = [curve.average(values, points) for values in (curve.precision, curve.orientation) for points in (40, 11)]
                rows.append(KittiRow(name, metric, group.name if group else "all", smallest, ap[0], ap[1], ap[2], ap[3], curve.num_truths))
    few = sorted({f"{row.name} ({row.difficulty}): {row.num_truths}" for row in rows if row.num_truths < FEW_TRUTHS})
    if few:
        warnings.warn(
            f"fewer than {FEW_TRUTHS} objects, so KITTI's curve is cut and even perfect detections score low: {', '.join(few)}",
            stacklevel=2,
        )
    return rows


def _check_facts(truths: Sequence[Truths], found: Sequence[Found], metrics: Sequence[str], camera: bool) -> None:
    for metric in metrics:
        if metric not in METRICS:
            raise InputError(f"unknown metric {metric!r}; there is {', '.join(METRICS)}")
    needed = (["image_boxes", "truncated", "occluded"] if camera else []) + (["image_boxes"] if "image" in metrics else [])
    for index, (truth, detections) in enumerate(zip(truths, found, strict=True)):
        for field in needed:
            if getattr(truth, field) is None:
                raise InputError(f"frame {index}: the truth has no {field}, which KITTI's difficulties and image metric need")
        if needed and detections.image_boxes is None:
            raise InputError(f"frame {index}: the detections have no image_boxes, which KITTI's difficulties and image metric need")


def kitti_curve(
    overlaps: Sequence[np.ndarray],
    truth_flags: Sequence[np.ndarray],
    found_flags: Sequence[np.ndarray],
    scores: Sequence[np.ndarray],
    min_overlap: float,
    *,
    gaps: Sequence[np.ndarray] | None = None,
    excused: Sequence[np.ndarray] | None = None,
) -> KittiCurve:
    """The curve of one class and difficulty.

    Args:
        overlaps: for each frame (N detections, M truths).
        truth_flags, found_flags: (M,) and (N,); 0 counts, 1 is ignored, -1 is another class.
        scores: (N,). min_overlap: what a match must exceed.
        gaps: (N, M) difference of the angles in radians, for the orientation.
        excused: (N,) bool, detections in regions without labels: no false positives.
    """
    frames = list(zip(overlaps, truth_flags, found_flags, scores, strict=True))
    num_truths = sum(int((flags == 0).sum()) for flags in truth_flags)
    matched = np.concatenate([np.zeros(0), *(_matched_scores(*frame, min_overlap) for frame in frames)])
    thresholds = score_thresholds(matched, num_truths)
    positives, false, similar = (np.zeros(len(thresholds)) for _ in range(3))
    for index, frame in enumerate(frames):
        counts = _count(*frame, min_overlap, thresholds, gaps[index] if gaps else None, excused[index] if excused else None)
        for total, count in zip((positives, false, similar), counts, strict=True):
            total += count
    claimed = np.maximum(positives + false, 1)
    orientation = _monotone(similar / claimed) if gaps else None
    return KittiCurve(thresholds, _monotone(positives / claimed), orientation, num_truths)


def _monotone(values: np.ndarray) -> np.ndarray:
    curve = np.zeros(NUM_SAMPLES)
    curve[: len(values)] = np.maximum.accumulate(values[::-1])[::-1]
    return curve


def score_thresholds(matched: np.ndarray, num_truths: int) -> np.ndarray:
    """Of the scores of matched detections those at which the recall is nearest to 0, 1/40, 2/40, ..."""
    ranked, chosen, recall = np.sort(matched)[::-1], [], 0.0
    for index, score in enumerate(ranked):
        here, last = (index + 1) / num_truths, index == len(ranked) - 1
        following = here if last else (index + 2) / num_truths
        if not last and following - recall < recall - here:
            continue  # the next score lies nearer to the step
        chosen.append(score)
        recall += 1 / (NUM_SAMPLES - 1)
    return np.array(chosen)


def _matched_scores(
    overlaps: np.ndarray, truth_flags: np.ndarray, found_flags: np.ndarray, scores: np.ndarray, smallest: float
) -> np.ndarray:
    """First pass: scores of the detections that take a truth that counts."""
    free, matched = found_flags >= 0, []
    for truth in np.flatnonzero(truth_flags >= 0):
        candidates = free & (overlaps[:, truth] > smallest)
        if not candidates.any():
            continue
        best = int(np.where(candidates, scores, -np.inf).argmax())
        free[best] = False
        if truth_flags[truth] == 0 and found_flags[best] == 0:
            matched.append(scores[best])
    return np.array(matched)


def _count(
    overlaps: np.ndarray,
    truth_flags: np.ndarray,
    found_flags: np.ndarray,
    scores: np.ndarray,
    smallest: float,
    thresholds: np.ndarray,
    gaps: np.ndarray | None,
    excused: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Second pass at all thresholds at once: true positives, false positives, similarity; (T,) each."""
    rows = np.arange(len(thresholds))
    positives, similar = np.zeros(len(rows)), np.zeros(len(rows))
    counts = found_flags == 0
    free = (scores >= thresholds[:, None]) & (found_flags >= 0)  # T, N
    for truth in np.flatnonzero(truth_flags >= 0) if len(scores) else ():
        candidates = free & (overlaps[:, truth] > smallest)
        counted = candidates & counts
        best = np.where(counted.any(1), np.where(counted, overlaps[:, truth], -1.0).argmax(1), candidates.argmax(1))
        taken = candidates.any(1)
        free[rows[taken], best[taken]] = False
        right = taken & counts[best] & (truth_flags[truth] == 0)
        positives += right
        if gaps is not None:
            similar += np.where(right, (1 + np.cos(gaps[best, truth])) / 2, 0.0)
    unclaimed = free & counts
    if excused is not None:
        unclaimed &= ~excused
    return positives, unclaimed.sum(1), similar


def _truth_flags(truth: Truths, name: str, group: Difficulty | None) -> np.ndarray:
    flags = np.full(len(truth.boxes), -1)
    for neighbour in NEIGHBOURS.get(name.lower(), ()):
        flags[is_class(truth.names, neighbour)] = 1
    own = is_class(truth.names, name)
    flags[own] = 0
    if group is not None:
        image = np.asarray(truth.image_boxes, float).reshape(-1, 4)
        beyond = (np.asarray(truth.occluded) > group.max_occlusion) | (np.asarray(truth.truncated) > group.max_truncation)
        flags[own & (beyond | (image[:, 3] - image[:, 1] <= group.min_height))] = 1
    return flags


def _found_flags(found: Found, name: str, group: Difficulty | None) -> np.ndarray:
    flags = np.where(is_class(found.names, name), 0, -1)
    if group is not None:
        image = np.asarray(found.image_boxes, float).reshape(-1, 4)
        flags[np.abs(image[:, 3] - image[:, 1]) < group.min_height] = 1  # of every class, as the official tool has it
    return flags


def _overlaps(truth: Truths, found: Found, metric: str) -> np.ndarray:
    if metric != "image":
        return frame_overlaps(found.boxes, truth.boxes, metric)
    assert truth.image_boxes is not None
    assert found.image_boxes is not None
    shared, own, other = _image_areas(found.image_boxes, truth.image_boxes)
    return shared / np.maximum(own[:, None] + other - shared, 1e-12)


def _image_areas(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shared area (N, M) of image boxes and their own areas (N,), (M,)."""
    a, b = np.asarray(a, float).reshape(-1, 4), np.asarray(b, float).reshape(-1, 4)
    sides = np.minimum(a[:, None, 2:], b[:, 2:]) - np.maximum(a[:, None, :2], b[:, :2])
    return np.prod(np.maximum(sides, 0), 2), np.prod(a[:, 2:] - a[:, :2], 1), np.prod(b[:, 2:] - b[:, :2], 1)


def _excused(truth: Truths, found: Found, smallest: float) -> np.ndarray:
    """(N,) detections that lie in a region without labels by more than `smallest` of their own area."""
    if truth.dont_care is None or len(truth.dont_care) == 0 or len(found.boxes) == 0:
        return np.zeros(len(found.boxes), bool)
    assert found.image_boxes is not None
    shared, own, _ = _image_areas(found.image_boxes, truth.dont_care)
    return (shared / np.maximum(own[:, None], 1e-12) > smallest).any(1)


def _angle_gaps(frames: Sequence[tuple[Truths, Found]], camera: bool) -> list[np.ndarray] | None:
    """(N, M) a frame: of alpha with a camera (None where one is missing), else of the yaw."""
    if not camera:
        return [angle_gap(f.boxes[:, None, 6].astype(float), t.boxes[:, 6].astype(float)) for t, f in frames]
    if any(t.alpha is None or f.alpha is None for t, f in frames):
        return None
    return [angle_gap(np.asarray(f.alpha, float)[:, None], np.asarray(t.alpha, float)) for t, f in frames]
