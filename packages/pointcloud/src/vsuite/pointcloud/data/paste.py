"""Object paste for detection: boxes cut out of labelled frames, laid into other frames.

An object keeps the place where it was scanned, since that decides how densely it was hit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path
from vsuite.pointcloud.boxes import overlap_bev
from vsuite.pointcloud.data.formats.raw import load_npz
from vsuite.pointcloud.data.frames import Frame, in_box
from vsuite.pointcloud.data.transforms import Sample

TOUCHING = 1e-4
"""Square metres: shared ground below this is rounding, not a collision."""


@dataclass(frozen=True)
class CutOut:
    """One object.

    Attributes:
        name: its class. box: (7,) or (9,) float32. points: (N, 3) float32, where they were. columns: name -> (N,). source: its frame.
    """

    name: str
    box: np.ndarray
    points: np.ndarray
    columns: dict[str, np.ndarray]
    source: str


@dataclass
class ObjectDatabase:
    """Objects by class, and the columns that their points have."""

    columns: tuple[str, ...]
    objects: dict[str, list[CutOut]] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(len(objects) for objects in self.objects.values())

    def add(self, cut_out: CutOut) -> None:
        """Adds one object."""
        self.objects.setdefault(cut_out.name, []).append(cut_out)

    def save(self, path: str | Path) -> None:
        """Writes an .npz of plain arrays."""
        everything = [cut_out for objects in self.objects.values() for cut_out in objects]
        ends = np.cumsum([len(cut_out.points) for cut_out in everything], dtype=np.int64)
        width = 3 + len(self.columns)
        rows = [np.column_stack([o.points, *(o.columns[name] for name in self.columns)]).astype(np.float32) for o in everything]
        with atomic_path(path) as temporary:
            np.savez_compressed(
                temporary,
                columns=np.array(self.columns, str),
                names=np.array([cut_out.name for cut_out in everything], str),
                sources=np.array([cut_out.source for cut_out in everything], str),
                boxes=_boxes_of(everything),
                ends=ends,
                points=np.concatenate(rows) if rows else np.empty((0, width), np.float32),
            )

    @classmethod
    def load(cls, path: str | Path) -> ObjectDatabase:
        """Reads what `save` wrote; raises `InputError` for another file."""
        arrays = load_npz(Path(path))
        if missing := {"columns", "names", "sources", "boxes", "ends", "points"} - set(arrays):
            raise InputError(f"{path}: not a database of objects: it has no {', '.join(sorted(missing))}")
        database = cls(tuple(arrays["columns"].tolist()))
        parts = np.split(arrays["points"], arrays["ends"][:-1])
        for name, source, box, rows in zip(arrays["names"].tolist(), arrays["sources"].tolist(), arrays["boxes"], parts, strict=False):
            columns = {column: rows[:, 3 + i] for i, column in enumerate(database.columns)}
            database.add(CutOut(name, box, rows[:, :3], columns, source))
        return database


def build_database(
    frames: Iterable[Frame], *, classes: Sequence[str], columns: Sequence[str] = ("intensity",), min_points: int = 5
) -> ObjectDatabase:
    """Cuts the labelled objects out of frames.

    Args:
        classes: which are kept. columns: what is kept of the points beside x, y, z.
        min_points: objects with fewer points are left out; so are KITTI's of no difficulty (more hidden than "hard").

    Raises:
        InputError: for a frame that cannot be read; and where nothing was found.
    """
    database = ObjectDatabase(tuple(columns))
    for frame in frames:
        if frame.boxes is None or frame.labels is None or not set(frame.labels) & set(classes):
            continue
        cloud = frame.read()
        cloud.array(columns)
        difficulties = frame.attributes.get("difficulty", np.zeros(len(frame.boxes)))
        for box, name, difficulty in zip(frame.boxes, frame.labels, difficulties, strict=True):
            if name not in classes or difficulty < 0:
                continue
            inside = in_box(cloud.points, box)
            if np.count_nonzero(inside) >= min_points:
                cut = cloud.select(inside)
                kept = {column: cut.columns[column].astype(np.float32) for column in columns}
                database.add(CutOut(name, box.astype(np.float32), cut.points, kept, frame.name))
    if not len(database):
        raise InputError(f"the frames hold no {' or '.join(classes)} with {min_points} or more points, so there is nothing to paste")
    return database


def paste_objects(
    sample: Sample, database: ObjectDatabase, rng: np.random.Generator, counts: Mapping[str, int], class_names: Sequence[str]
) -> Sample:
    """Adds objects where they overlap no box, seen from above; the points they cover are removed.

    Args:
        sample: with boxes and labels, indices of `class_names`. Its columns must include those of the database; others are dropped.
        counts: how many objects of each class are tried; those that would collide are left out.

    Returns:
        the sample with the points, boxes and labels of the objects at the end.
    """
    if sample.boxes is None or sample.labels is None:
        raise InputError("objects are pasted into samples with boxes and labels")
    chosen = _draw(database, rng, counts, class_names)
    chosen = _without_collisions(sample.boxes, chosen)
    if not chosen:
        return sample
    covered = np.zeros(len(sample), bool)
    for cut_out in chosen:
        covered |= in_box(sample.points, cut_out.box)
    rest = sample.select(~covered)
    missing = [name for name in database.columns if name not in sample.columns]
    if missing:
        raise InputError(f"the sample has no column {', '.join(missing)}, which the objects to be pasted have")
    boxes = _boxes_of(chosen)
    return replace(
        rest,
        points=np.concatenate([rest.points, *(cut_out.points for cut_out in chosen)]),
        columns={name: np.concatenate([rest.columns[name], *(c.columns[name] for c in chosen)]) for name in database.columns},
        boxes=np.concatenate([sample.boxes, _as_wide(boxes, sample.boxes.shape[1])]),
        labels=np.concatenate([sample.labels, [list(class_names).index(cut_out.name) for cut_out in chosen]]).astype(np.int64),
    )


def _draw(database: ObjectDatabase, rng: np.random.Generator, counts: Mapping[str, int], class_names: Sequence[str]) -> list[CutOut]:
    chosen: list[CutOut] = []
    for name, count in counts.items():
        if name not in class_names:
            raise unknown("class to paste", name, class_names)
        objects = database.objects.get(name, [])
        chosen += [objects[i] for i in rng.permutation(len(objects))[:count]]
    return chosen


def _without_collisions(boxes: np.ndarray, chosen: list[CutOut]) -> list[CutOut]:
    """Those that overlap neither a box of the scene nor one that was taken before them."""
    if not chosen:
        return []
    candidates = torch.from_numpy(_boxes_of(chosen)[:, :7])
    scene = torch.from_numpy(np.ascontiguousarray(boxes[:, :7], np.float32))
    free = (overlap_bev(candidates, scene) <= TOUCHING).all(1).numpy() if len(boxes) else np.ones(len(chosen), bool)
    among = overlap_bev(candidates, candidates).numpy() > TOUCHING
    taken: list[int] = []
    for i in np.flatnonzero(free):
        if not among[i, taken].any():
            taken.append(int(i))
    return [chosen[i] for i in taken]


def _boxes_of(objects: Sequence[CutOut]) -> np.ndarray:
    """(M, 7) or (M, 9) float32; where only some have a velocity, it is left out."""
    width = min((len(cut_out.box) for cut_out in objects), default=7)
    return np.array([cut_out.box[:width] for cut_out in objects], np.float32).reshape(-1, width)


def _as_wide(boxes: np.ndarray, width: int) -> np.ndarray:
    """Boxes with as many values as the scene's; a velocity that is unknown becomes NaN."""
    if boxes.shape[1] >= width:
        return boxes[:, :width]
    return np.pad(boxes, ((0, 0), (0, width - boxes.shape[1])), constant_values=np.nan)
