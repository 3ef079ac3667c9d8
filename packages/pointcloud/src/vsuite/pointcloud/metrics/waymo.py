"""Average precision after Waymo: AP and heading-weighted APH, by level and distance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vsuite.pointcloud.metrics.detection import (
    Found,
    Truths,
    angle_gap,
    check_frames,
    class_names,
    frame_overlaps,
    is_class,
    mean_or_nan,
    overlaps_for,
)

LEVELS = (1, 2)
BANDS = {"all": (0.0, np.inf), "0-30": (0.0, 30.0), "30-50": (30.0, 50.0), "50+": (50.0, np.inf)}
LEVEL_1_POINTS = 5


@dataclass(frozen=True)
class WaymoRow:
    """One line of the table, in percent; NaN where the group has no objects. `name` "mean" is the mean over the classes."""

    name: str
    level: int
    band: str
    ap: float
    aph: float
    num_truths: int


def waymo_definition() -> str:
    """What `waymo_ap` computes, for people."""
    return (
        "Waymo-style average precision, re-implemented: the official tool matches by the Hungarian method at each score cut-off, here "
        "detections are matched once, by falling score, each with the free object of its class and frame of the largest 3D IoU, if that "
        "is 0.7 or more for vehicles and 0.5 for others unless given. Objects without points are left out. LEVEL_1: objects with more "
        f"than {LEVEL_1_POINTS} points and not marked hard; LEVEL_2: all. Where points are not known every object is of LEVEL_1. "
        "Distance in the plane from the sensor in metres: an object belongs to its own band, an unmatched detection to its own; what "
        "is matched with an object outside the level or band is ignored. AP: area under precision (made monotone from the right) over "
        "recall, at every score. APH: the same with true positives weighted in the precision by 1 - |difference of yaw| / pi; the recall "
        "is not weighted. Mean: over the classes that have objects."
    )


def waymo_ap(truths: Sequence[Truths], found: Sequence[Found], *, overlaps: Mapping[str, float] | None = None) -> list[WaymoRow]:
    """AP and APH of each class and of their mean, for two levels and four distance bands; `waymo_definition` says how.

    Args:
        truths, found: a frame each.
        overlaps: class name -> smallest 3D IoU of a match. None: the classes of the truth, 0.7 for vehicles, 0.5 for others.

    Raises:
        InputError: for damaged frames.
    """
    check_frames(truths, found)
    rows = []
    for name, smallest in overlaps_for(class_names(truths), overlaps).items():
        matches = [_match(truth, detections, name, smallest) for truth, detections in zip(truths, found, strict=True)]
        whole = (
            _Matches(*(np.concatenate(parts) for parts in zip(*(vars(match).values() for match in matches), strict=True)))
            if matches
            else None
        )
        rows += [_row(name, level, band, whole) for level in LEVELS for band in BANDS] if whole else []
    for level in LEVELS:
        for band in BANDS:
            group = [row for row in rows if (row.level, row.band) == (level, band)]
            ap, aph = mean_or_nan(row.ap for row in group), mean_or_nan(row.aph for row in group)
            rows.append(WaymoRow("mean", level, band, ap, aph, sum(row.num_truths for row in group)))
    return rows


@dataclass(frozen=True)
class _Matches:
    """Detections of one class (scores, own distance, level and distance of the matched truth, heading accuracy) and its truths.

    The level of an unmatched detection is 0.
    """

    scores: np.ndarray
    distance: np.ndarray
    level: np.ndarray
    truth_distance: np.ndarray
    accuracy: np.ndarray
    truth_levels: np.ndarray
    truth_distances: np.ndarray


def _match(truth: Truths, found: Found, name: str, smallest: float) -> _Matches:
    points = np.full(len(truth.boxes), LEVEL_1_POINTS + 1) if truth.num_points is None else np.asarray(truth.num_points)
    hard = np.zeros(len(truth.boxes), bool) if truth.hard is None else np.asarray(truth.hard, bool)
    levels = np.where((points > LEVEL_1_POINTS) & ~hard, 1, 2)
    chosen = is_class(truth.names, name) & (points > 0)
    true, levels = np.asarray(truth.boxes, float)[chosen], levels[chosen]
    own = is_class(found.names, name)
    scores = np.asarray(found.scores, float)[own]
    order = np.argsort(-scores, kind="stable")
    boxes, scores = np.asarray(found.boxes, float)[own][order], scores[order]
    overlaps = frame_overlaps(boxes, true, "3d")
    partner = np.full(len(boxes), -1)
    for row in range(len(boxes)) if len(true) else ():
        best = int(overlaps[row].argmax())
        if overlaps[row, best] >= smallest:
            partner[row] = best
            overlaps[:, best] = -1.0  # taken
    distances = np.hypot(true[:, 0], true[:, 1])
    matched = partner >= 0
    level, truth_distance, accuracy = np.zeros(len(boxes), int), np.zeros(len(boxes)), np.zeros(len(boxes))
    level[matched], truth_distance[matched] = levels[partner[matched]], distances[partner[matched]]
    accuracy[matched] = 1 - angle_gap(boxes[matched, 6], true[partner[matched], 6]) / np.pi
    return _Matches(scores, np.hypot(boxes[:, 0], boxes[:, 1]), level, truth_distance, accuracy, levels, distances)


def _row(name: str, level: int, band: str, matches: _Matches) -> WaymoRow:
    low, high = BANDS[band]
    counts = (matches.truth_levels <= level) & (matches.truth_distances >= low) & (matches.truth_distances < high)
    matched = matches.level > 0
    right = matched & (matches.level <= level) & (matches.truth_distance >= low) & (matches.truth_distance < high)
    wrong = ~matched & (matches.distance >= low) & (matches.distance < high)
    kept = right | wrong
    scores, right, accuracy = matches.scores[kept], right[kept], matches.accuracy[kept]
    num_truths = int(counts.sum())
    ap, aph = (100 * area_under_curve(scores, right, weight, num_truths) for weight in (right.astype(float), accuracy * right))
    return WaymoRow(name, level, band, ap, aph, num_truths)


def area_under_curve(scores: np.ndarray, right: np.ndarray, weight: np.ndarray, num_truths: int) -> float:
    """Area under precision, made monotone from the right, over recall; detections of equal score enter together.

    Args:
        scores, right: (N,) of each detection, and whether it is a true positive.
        weight: (N,) what it adds to the precision: `right` itself for AP.
        num_truths: objects there are. NaN is returned for none.
    """
    if num_truths == 0:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))[: len(ranked)]
    recall = right[order].cumsum()[ends] / num_truths
    precision = weight[order].cumsum()[ends] / (ends + 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())
