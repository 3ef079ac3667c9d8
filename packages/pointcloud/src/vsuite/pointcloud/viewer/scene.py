"""What a viewer shows: one frame of points with boxes and labels, checked once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import overload

import numpy as np

from vsuite.core.errors import InputError

UNNAMED = "object"  # the class of a box that was given without one
NO_BOXES, NO_SCORES = np.zeros((0, 7), np.float32), np.zeros(0, np.float32)


@dataclass(eq=False)
class Scene:
    """One frame.

    Lengths are checked, boxes are brought to float32 in order of falling score, and columns called `label` and `prediction`
    serve as the labels and predictions of the points where none are given.

    Attributes:
        name: shown to the user, such as the file's name.
        points: (N, 3) float32 in metres, z up.
        columns: numbers of each point by name, such as intensity; red, green and blue run from 0 to 255.
        boxes: (M, 7) or (M, 9) boxes that were found, `x y z length width height yaw [vx vy]`, z at the centre.
        box_labels: M class names. box_scores: (M,) in [0, 1]; NaN, and never hidden by a threshold, where none are given.
        truth_boxes: (T, 7) or (T, 9) true boxes. truth_labels: T class names.
        point_labels, point_predictions: (N,) integers, or None; a negative value is "not labelled".
        label_names: names of those integers from 0 on; a value beyond them is shown as the number.

    Raises:
        InputError: naming the scene, where lengths or shapes disagree or coordinates are not finite.
    """

    name: str
    points: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    boxes: np.ndarray = field(default_factory=lambda: NO_BOXES)
    box_labels: Sequence[str] = ()
    box_scores: np.ndarray = field(default_factory=lambda: NO_SCORES)
    truth_boxes: np.ndarray = field(default_factory=lambda: NO_BOXES)
    truth_labels: Sequence[str] = ()
    point_labels: np.ndarray | None = None
    point_predictions: np.ndarray | None = None
    label_names: Sequence[str] = ()
    _box_of_points: dict[bool, np.ndarray] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.points = np.ascontiguousarray(self.points, np.float32)
        if self.points.ndim != 2 or self.points.shape[1] != 3:
            raise InputError(f"{self.name}: points have the shape {self.points.shape}; they are rows x y z")
        if not np.isfinite(self.points).all():
            raise InputError(f"{self.name}: {int((~np.isfinite(self.points).all(1)).sum())} points have NaN or infinite coordinates")
        self.columns = {name: np.asarray(values) for name, values in self.columns.items()}
        self.point_labels = self._integers(self.point_labels, "label")
        self.point_predictions = self._integers(self.point_predictions, "prediction")
        for name, values in self.columns.items():
            self._check_length(name, values)
        boxes, labels = _boxes(self.name, "boxes", self.boxes, self.box_labels)
        scores = np.asarray(self.box_scores, np.float32) if len(self.box_scores) else np.full(len(boxes), np.nan, np.float32)
        if scores.shape != (len(boxes),):
            raise InputError(f"{self.name}: {len(boxes)} boxes, but scores of the shape {scores.shape}")
        order = np.argsort(-scores, kind="stable")
        self.boxes, self.box_labels, self.box_scores = boxes[order], [labels[i] for i in order], scores[order]
        self.truth_boxes, self.truth_labels = _boxes(self.name, "true boxes", self.truth_boxes, self.truth_labels)

    def _integers(self, values: np.ndarray | None, column: str) -> np.ndarray | None:
        """Labels of the points, given or from the column of that name, which is then no longer one to colour by as a number."""
        stored = self.columns.pop(column, None)
        values = stored if values is None else np.asarray(values)
        if values is None:
            return None
        self._check_length(column, values)
        return np.nan_to_num(values, nan=-1).astype(np.int32)

    def _check_length(self, what: str, values: np.ndarray) -> None:
        if values.shape != (len(self.points),):
            raise InputError(f"{self.name}: {len(self.points)} points, but {what} has the shape {values.shape}")

    @property
    def class_names(self) -> list[str]:
        """Classes of the boxes and of the points that occur in this frame, in order of appearance."""
        names = [*self.truth_labels, *self.box_labels]
        for values in (self.point_labels, self.point_predictions):
            if values is not None:
                names += [self.label_name(value) for value in np.unique(values[values >= 0]).tolist()]
        return list(dict.fromkeys(names))

    def label_name(self, value: int) -> str:
        """The name of a point's label; "" where it is not labelled."""
        if value < 0:
            return ""
        return str(self.label_names[value]) if value < len(self.label_names) else str(value)

    def shown_boxes(self, threshold: float, hidden: Sequence[str] = ()) -> np.ndarray:
        """(M,) bool: which found boxes reach a score and are of no hidden class. Boxes without scores always reach it."""
        return ~(self.box_scores < threshold) & np.array([name not in hidden for name in self.box_labels], bool)

    def box_of_points(self, truth: bool = False) -> np.ndarray:
        """(N,) int16: the found (or true) box that each point lies in, the one of the highest score; -1 outside all."""
        import torch

        from vsuite.pointcloud import boxes

        if truth not in self._box_of_points:
            wanted = torch.from_numpy(self.truth_boxes if truth else self.boxes)
            self._box_of_points[truth] = boxes.box_of_points(torch.from_numpy(self.points), wanted).numpy().astype(np.int16)
        return self._box_of_points[truth]


def _boxes(name: str, what: str, boxes: np.ndarray, labels: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    from vsuite.pointcloud.boxes import check_boxes

    array = np.array(boxes, np.float32)
    if not array.size:
        array = array.reshape(0, 7)
    check_boxes(array, f"{name}: {what}")
    if labels and len(labels) != len(array):
        raise InputError(f"{name}: {len(array)} {what}, but {len(labels)} class names")
    return array, [str(label) for label in labels] or [UNNAMED] * len(array)


class LazyScenes(Sequence[Scene]):
    """Scenes that are read when they are looked at, for folders of many sweeps. The last few are kept.

    Args:
        names: what each is called.
        load: gives the scene of an index from 0.
    """

    KEPT = 8

    def __init__(self, names: Sequence[str], load: Callable[[int], Scene]) -> None:
        self.names = list(names)
        self._load = load
        self._kept: dict[int, Scene] = {}

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Scene: ...
    @overload
    def __getitem__(self, index: slice) -> LazyScenes: ...
    def __getitem__(self, index: int | slice) -> Scene | LazyScenes:
        if isinstance(index, slice):
            chosen = range(len(self))[index]
            return LazyScenes([self.names[i] for i in chosen], lambda i: self[chosen[i]])
        index = range(len(self))[index]
        if index not in self._kept:
            self._kept[index] = self._load(index)
            while len(self._kept) > self.KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[index]

    def __iter__(self) -> Iterator[Scene]:
        return (self[index] for index in range(len(self)))


def check_scenes(scenes: Sequence[Scene]) -> None:
    """Raises an InputError where there is nothing to show."""
    if not len(scenes):
        raise InputError("nothing to show: no frame was given")


PAGES, PICTURES = (".html", ".htm"), (".png",)
"""Endings of the files that the viewer writes."""


def check_ending(path: str | Path, endings: Sequence[str]) -> None:
    """Raises an `InputError` unless a file's name ends like what it will hold."""
    if Path(path).suffix.lower() not in endings:
        raise InputError(f"{path}: its name must end in {' or '.join(endings)}")


def box_text(label: str, score: float) -> str:
    """What stands beside a box."""
    return label if math.isnan(score) else f"{label} {score:.2f}"
