"""What every detection metric reads: the true objects and the detections of each frame, as plain arrays.

Boxes are rows `x y z length width height yaw [vx vy]` (metres, z at the centre, yaw counter-clockwise in radians). The metrics
themselves are `kitti.kitti_ap`, `waymo.waymo_ap` and `nuscenes.nuscenes_ap`; each has a function that returns its definition.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from vsuite.core.errors import InputError
from vsuite.pointcloud.boxes import check_boxes, iou_3d, iou_bev

FEW_TRUTHS = 40
VEHICLES = {"car", "van", "truck", "bus", "tram", "trailer", "vehicle", "construction_vehicle"}


@dataclass(frozen=True)
class Truths:
    """The true objects of one frame.

    Attributes:
        boxes: (M, 7 or 9). names: M class names.
        num_points: (M,) points on each object; Waymo's levels and nuScenes want it. None: not known, every object counts.
        hard: (M,) bool, marked hard by people (Waymo). None: none is.
        image_boxes: (M, 4) left top right bottom in pixels. truncated: (M,) in [0, 1]. occluded: (M,) 0 to 3.
        alpha: (M,) observation angle in radians. KITTI's difficulties and orientation want these four.
        dont_care: (D, 4) image regions without labels (KITTI, metric "image").
    """

    boxes: np.ndarray
    names: Sequence[str]
    num_points: np.ndarray | None = None
    hard: np.ndarray | None = None
    image_boxes: np.ndarray | None = None
    truncated: np.ndarray | None = None
    occluded: np.ndarray | None = None
    alpha: np.ndarray | None = None
    dont_care: np.ndarray | None = None


@dataclass(frozen=True)
class Found:
    """The detections of one frame.

    Attributes:
        boxes: (N, 7 or 9). scores: (N,). names: N class names.
        image_boxes: (N, 4) pixels. alpha: (N,) radians. Both as in `Truths`.
    """

    boxes: np.ndarray
    scores: np.ndarray
    names: Sequence[str]
    image_boxes: np.ndarray | None = None
    alpha: np.ndarray | None = None


def check_frames(truths: Sequence[Truths], found: Sequence[Found]) -> None:
    """Raises an InputError that names the frame unless every frame has matching arrays and sound boxes."""
    if len(truths) != len(found):
        raise InputError(f"{len(truths)} frames of truth with {len(found)} frames of detections; each frame needs both")
    for index, (truth, detections) in enumerate(zip(truths, found, strict=True)):
        for what, frame, fields in (
            ("truth", truth, ("names", "num_points", "hard", "image_boxes", "truncated", "occluded", "alpha")),
            ("detections", detections, ("names", "scores", "image_boxes", "alpha")),
        ):
            check_boxes(np.asarray(frame.boxes), f"frame {index}, {what}")
            for field in fields:
                values = getattr(frame, field)
                if values is not None and len(values) != len(frame.boxes):
                    raise InputError(f"frame {index}, {what}: {len(frame.boxes)} boxes with {len(values)} {field}")
        if not np.isfinite(np.asarray(detections.scores, dtype=float)).all():
            raise InputError(f"frame {index}, detections: scores hold NaN or infinite values")


def class_names(truths: Iterable[Truths]) -> list[str]:
    """Names that occur in the truth, sorted."""
    return sorted({name for frame in truths for name in frame.names})


def smallest_overlap(name: str) -> float:
    """IoU that KITTI and Waymo ask for: 0.7 for vehicles, 0.5 for everything else."""
    return 0.7 if name.lower() in VEHICLES else 0.5


def overlaps_for(names: Iterable[str], given: Mapping[str, float] | None) -> dict[str, float]:
    """The IoU that each class needs: the one given, else `smallest_overlap`."""
    overlaps = {name: smallest_overlap(name) for name in names} if given is None else dict(given)
    for name, value in overlaps.items():
        if not 0 < value < 1:
            raise InputError(f"overlap of {name!r}: {value}; an IoU between 0 and 1")
    return overlaps


def is_class(names: Sequence[str], name: str) -> np.ndarray:
    """(N,) bool, without regard to upper and lower case."""
    return np.array([other.lower() == name.lower() for other in names], bool)


def frame_overlaps(found: np.ndarray, truth: np.ndarray, metric: str) -> np.ndarray:
    """IoU (N, M) of detections and truths, "bev" (seen from above) or "3d"."""
    measure = {"bev": iou_bev, "3d": iou_3d}[metric]
    return measure(torch.tensor(np.asarray(found, float)), torch.tensor(np.asarray(truth, float))).numpy()


def angle_gap(a: np.ndarray, b: np.ndarray, period: float = 2 * np.pi) -> np.ndarray:
    """|a - b| on the circle, in [0, period / 2]."""
    gap = np.abs(a - b) % period
    return np.minimum(gap, period - gap)


def mean_or_nan(values: Iterable[float]) -> float:
    """Mean of the values that are numbers; NaN where there is none."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else float("nan")
