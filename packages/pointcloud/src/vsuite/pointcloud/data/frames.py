"""Frames of a detection data set: a sweep, its boxes, and what is needed to write results in the data set's own form."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.calibration import Calibration
from vsuite.pointcloud.data.clouds import PointCloud, check_sweep, read_cloud, without_close

NEAR = 50.0
"""Metres: boxes this near are seen by a lidar, unless something hides them."""


@dataclass(frozen=True)
class Sweep:
    """An earlier sweep that is added to a frame.

    Attributes:
        transform: (4, 4) from its sensor frame to that of the frame.
        age: seconds before the frame.
    """

    path: Path
    transform: np.ndarray
    age: float


@dataclass
class Frame:
    """One sweep with its labels.

    Attributes:
        name: unique in its data set; nuScenes' sample token.
        path: file of the points.
        boxes: (M, 7) float32 rows x y z length width height yaw, or (M, 9) with vx vy; z is the centre. None without labels.
        labels: class name of each box.
        columns: the columns of the points behind x, y, z.
        layout: how the file of the points is to be read (see `read_cloud`), None where its ending says it.
        attributes: name -> (M, ...) of what else the labels say: difficulty, truncated, occluded, image_box, num_points.
        calibration: of KITTI-style data, to write results in the camera's frame.
        to_global: (4, 4), of nuScenes, to write results in the global frame.
        sweeps: earlier sweeps to be added, newest first.
        prepare: what the data set does to the points after reading, such as Waymo's tanh.
        remove_close: metres; points of each sweep that are nearer to its sensor are left out (see `without_close`).
    """

    name: str
    path: Path
    boxes: np.ndarray | None = None
    labels: list[str] | None = None
    columns: tuple[str, ...] = ("intensity",)
    layout: str | None = None
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    calibration: Calibration | None = None
    to_global: np.ndarray | None = None
    sweeps: tuple[Sweep, ...] = ()
    prepare: Callable[[PointCloud], PointCloud] | None = None
    remove_close: float = 0.0

    def read(self) -> PointCloud:
        """The points, checked to be a sweep in metres; with earlier sweeps moved into this frame, and their age as the column `time`.

        Raises:
            InputError: as `read_cloud` and `check_sweep`; and where points lack one of `columns`.
        """
        cloud = self._read_file(self.path)
        if "time" in self.columns and "time" not in cloud.columns:
            clouds = [cloud, *(_moved(self._read_file(sweep.path), sweep.transform) for sweep in self.sweeps)]
            ages = [0.0, *(sweep.age for sweep in self.sweeps)]
            cloud = join_clouds(clouds)
            cloud.columns["time"] = np.concatenate([np.full(len(c), age, np.float32) for c, age in zip(clouds, ages, strict=True)])
        cloud.array(self.columns)
        return cloud

    def _read_file(self, path: Path) -> PointCloud:
        cloud = read_cloud(path, layout=self.layout)
        check_sweep(cloud)
        cloud = without_close(cloud, self.remove_close)
        return cloud if self.prepare is None else self.prepare(cloud)

    def select(self, keep: np.ndarray) -> Frame:
        """The frame with the boxes that a mask (M,) or an index chooses."""
        if self.boxes is None or self.labels is None:
            return self
        chosen = np.arange(len(self.boxes))[keep]
        attributes = {name: values[chosen] for name, values in self.attributes.items()}
        return replace(self, boxes=self.boxes[chosen], labels=[self.labels[i] for i in chosen], attributes=attributes)

    def of_classes(self, classes: Sequence[str], merge: Mapping[str, str]) -> Frame:
        """The frame with the boxes of these classes alone, after renaming classes by `merge`."""
        if self.labels is None:
            return self
        names = [merge.get(name, name) for name in self.labels]
        return replace(self, labels=names).select(np.array([name in classes for name in names], dtype=bool))


@dataclass
class DetectionData:
    """A detection data set.

    Attributes:
        frames: sorted as the split lists them.
        class_names: of all labels in the frames, or as the data set declares them.
        layout: "kitti", "waymo", "nuscenes" or "custom".
    """

    frames: list[Frame]
    class_names: list[str]
    layout: str

    def __len__(self) -> int:
        return len(self.frames)


def join_clouds(clouds: Sequence[PointCloud]) -> PointCloud:
    """The points of several clouds; columns are those that all have."""
    shared = [name for name in clouds[0].columns if all(name in cloud.columns for cloud in clouds)]
    columns = {name: np.concatenate([cloud.columns[name] for cloud in clouds]) for name in shared}
    return replace(clouds[0], points=np.concatenate([cloud.points for cloud in clouds]), columns=columns)


def _moved(cloud: PointCloud, transform: np.ndarray) -> PointCloud:
    points = cloud.points.astype(np.float64) @ transform[:3, :3].T + transform[:3, 3]
    return replace(cloud, points=points.astype(np.float32))


def points_in_box_count(points: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """How many points (P, 3) lie in each box (M, 7): (M,) int64."""
    return np.array([np.count_nonzero(in_box(points, box)) for box in boxes], np.int64)


def in_box(points: np.ndarray, box: np.ndarray, margin: float = 0.0) -> np.ndarray:
    """Mask (P,) of the points inside one box, its sides included, grown by `margin` metres on each side."""
    cosine, sine = np.cos(box[6]), np.sin(box[6])
    x, y, z = points[:, 0] - box[0], points[:, 1] - box[1], points[:, 2] - box[2]
    half = box[3:6] / 2 + margin
    along, across = cosine * x + sine * y, cosine * y - sine * x
    return (np.abs(along) <= half[0]) & (np.abs(across) <= half[1]) & (np.abs(z) <= half[2])


def check_labels_fit(frame: Frame, cloud: PointCloud) -> None:
    """Raises `InputError` where the boxes cannot belong to the points: two or more within 50 m, and not one holds a point."""
    if frame.boxes is None:
        return
    near = frame.boxes[np.linalg.norm(frame.boxes[:, :2], axis=1) < NEAR]
    if len(near) > 1 and not any(in_box(cloud.points, box, 0.2).any() for box in near):
        raise InputError(
            f"{frame.path}: none of the {len(near)} boxes within {NEAR:.0f} m holds a point of it; the labels are of another frame, "
            "or in another coordinate frame"
        )


def box_problems(boxes: np.ndarray, names: Sequence[str]) -> str:
    """What is wrong with boxes (M, 7 or 9), for a message; empty if nothing is."""
    for number, (box, name) in enumerate(zip(boxes, names, strict=True), 1):
        if not np.isfinite(box[:7]).all():
            return f"box {number} ({name}) has a NaN or infinite value"
        if (box[3:6] <= 0).any():
            size = " x ".join(f"{value:g}" for value in box[3:6])
            return f"box {number} ({name}) has the size {size} (length x width x height); sizes are positive"
    return ""


class Problems:
    """Collects what is wrong, so that all is said at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        self.lines.append(line)

    def run(self, function: Callable[..., Frame], *arguments: object) -> Frame | None:
        """Calls a function; an `InputError` becomes a line."""
        try:
            return function(*arguments)
        except InputError as error:
            self.lines.append(str(error))
            return None

    def raise_if_any(self, root: Path, shown: int = 20) -> None:
        """Raises one `InputError` with a line for each problem (`shown` of them, and how many more)."""
        if not self.lines:
            return
        if len(self.lines) == 1:
            raise InputError(self.lines[0])
        more = [f"... and {len(self.lines) - shown} more"] if len(self.lines) > shown else []
        raise InputError("\n  ".join([f"{root}: {len(self.lines)} problems:", *self.lines[:shown], *more]))


def class_names_of(frames: Iterable[Frame], first: Sequence[str] = ()) -> list[str]:
    """All class names in the labels: those in `first` that occur, in its order, then others by name."""
    found = {label for frame in frames for label in frame.labels or ()}
    return [name for name in first if name in found] + sorted(found - set(first))


def split_names(root: Path, split: str | None, available: Sequence[str], folder: str = "ImageSets") -> list[str]:
    """Names of the frames of a split, from ROOT/ImageSets/SPLIT.txt; without a split, all that are available.

    Raises:
        InputError: where the file is missing (naming those that exist), empty, or lists a name twice.
    """
    if split is None:
        return sorted(available)
    path = root / folder / f"{split}.txt"
    if not path.is_file():
        others = sorted(file.stem for file in (root / folder).glob("*.txt"))
        raise InputError(f"{path}: no such file, so there is no split {split!r}; there is {', '.join(others) or 'none'}")
    names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names:
        raise InputError(f"{path}: lists no frames")
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{path}: lists {', '.join(repeated[:5])} more than once")
    return names
