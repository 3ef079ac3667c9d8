"""KITTI's object data set, and its label files in both directions."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.pointcloud.data.calibration import IMAGE_SIZE, Calibration, read_calibration, wrap
from vsuite.pointcloud.data.clouds import PointCloud
from vsuite.pointcloud.data.frames import DetectionData, Frame, Problems, box_problems, class_names_of, split_names

CLASSES = ("Car", "Pedestrian", "Cyclist", "Van", "Truck", "Person_sitting", "Tram", "Misc")
DIFFICULTIES = ("easy", "moderate", "hard")
_LIMITS = ((40, 0, 0.15), (25, 1, 0.3), (25, 2, 0.5))
_DONT_CARE = "DontCare"


@dataclass
class KittiLabels:
    """The lines of one label file, in the camera's frame.

    Attributes:
        names: class of each line, DontCare included.
        truncated, occluded, alpha: (M,).
        image_boxes: (M, 4) left top right bottom in pixels.
        dimensions: (M, 3) height width length in metres. locations: (M, 3), middle of the bottom face.
        rotations: (M,) rotation_y. scores: (M,) of results, else None.
    """

    names: list[str]
    truncated: np.ndarray
    occluded: np.ndarray
    alpha: np.ndarray
    image_boxes: np.ndarray
    dimensions: np.ndarray
    locations: np.ndarray
    rotations: np.ndarray
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.names)

    def difficulties(self) -> np.ndarray:
        """(M,) int64: 0 easy, 1 moderate, 2 hard, by height in the picture, occlusion and truncation; -1 beyond all three."""
        heights = self.image_boxes[:, 3] - self.image_boxes[:, 1]
        levels = np.full(len(self), -1)
        for level, (height, occluded, truncated) in reversed(list(enumerate(_LIMITS))):
            levels[(heights > height) & (self.occluded <= occluded) & (self.truncated <= truncated)] = level
        return levels

    def select(self, keep: np.ndarray) -> KittiLabels:
        """The lines that a mask (M,) chooses."""
        arrays = {name: values[keep] for name, values in vars(self).items() if isinstance(values, np.ndarray)}
        return replace(self, names=[name for name, kept in zip(self.names, keep, strict=True) if kept], **arrays)


def read_labels(path: Path, *, scores: bool = True) -> KittiLabels:
    """Reads a label file: type, truncated, occluded, alpha, image box, h w l, x y z, rotation_y [, score].

    Args:
        scores: whether a 16th value is a score (in Waymo converted to KITTI's form it is a camera).

    Raises:
        InputError: naming the file and line that has too few values or values that are no numbers.
    """
    names, rows = [], []
    for number, line in enumerate(_lines(path), 1):
        words = line.split()
        if not words:
            continue
        if len(words) < 15:
            raise InputError(f"{path}: line {number} has {len(words)} values; a KITTI label has 15, or 16 with a score")
        try:
            rows.append([float(word) for word in words[1 : 16 if scores else 15]])
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
        names.append(words[0])
    if len({len(row) for row in rows}) > 1:
        raise InputError(f"{path}: some lines have a score and others none")
    values = np.array(rows, np.float64).reshape(len(rows), -1 if rows else 14)
    return KittiLabels(
        names,
        truncated=values[:, 0],
        occluded=values[:, 1].astype(np.int64),
        alpha=values[:, 2],
        image_boxes=values[:, 3:7],
        dimensions=values[:, 7:10],
        locations=values[:, 10:13],
        rotations=values[:, 13],
        scores=values[:, 14] if values.shape[1] > 14 else None,
    )


def write_labels(path: Path, labels: KittiLabels) -> None:
    """Writes a label file with two decimals as KITTI's own, four for results (those with scores)."""
    digits = 2 if labels.scores is None else 4
    lines = []
    for i, name in enumerate(labels.names):
        numbers = [*labels.image_boxes[i], *labels.dimensions[i], *labels.locations[i], labels.rotations[i]]
        if labels.scores is not None:
            numbers.append(labels.scores[i])
        start = f"{name} {labels.truncated[i]:.2f} {labels.occluded[i]:d} {labels.alpha[i]:.2f}"
        lines.append(" ".join([start, *(f"{number:.{digits}f}" for number in numbers)]))
    write_text(path, "".join(line + "\n" for line in lines))


def labels_of_boxes(boxes: np.ndarray, names: Sequence[str], calibration: Calibration, scores: np.ndarray | None = None) -> KittiLabels:
    """Boxes (M, 7) of the lidar frame as label lines.

    Alpha and the box in the picture are computed; truncation and occlusion are unknown and written as 0.
    """
    locations, dimensions, rotations = calibration.boxes_to_camera(boxes)
    alpha = wrap(rotations - np.arctan2(locations[:, 0], locations[:, 2]))
    count = len(boxes)
    return KittiLabels(
        list(names),
        np.zeros(count),
        np.zeros(count, np.int64),
        alpha,
        calibration.image_boxes(boxes),
        dimensions,
        locations,
        rotations,
        scores,
    )


def boxes_of_labels(labels: KittiLabels, calibration: Calibration) -> np.ndarray:
    """(M, 7) float32 boxes in the lidar frame."""
    return calibration.boxes_to_lidar(labels.locations, labels.dimensions, labels.rotations).astype(np.float32)


def read_kitti(root: str | Path, split: str | None = None) -> DetectionData:
    """Reads KITTI's object data set.

    Args:
        root: the folder with training/{velodyne,calib,label_2} (and ImageSets/ for splits), or `training` or `testing` itself.
        split: a name in ImageSets, such as "train"; without it, all frames. "test" is read from testing/ and has no labels.

    Returns:
        frames with boxes in the lidar frame, DontCare left out, and the attributes difficulty, truncated, occluded, alpha and
        image_box.

    Raises:
        InputError: with a line for each frame that is wrong.
    """
    root = Path(root)
    part = root if (root / "velodyne").is_dir() else root / ("testing" if split == "test" else "training")
    if not (part / "velodyne").is_dir():
        raise InputError(f"{root}: not KITTI's layout: there is no {part.name}/velodyne")
    available = [path.stem for path in (part / "velodyne").glob("*.bin")]
    sets = root if (root / "ImageSets").is_dir() or part != root else root.parent
    labelled = (part / "label_2").is_dir()
    problems = Problems()
    read = partial(_read_frame, part, labelled)
    frames = [frame for name in split_names(sets, split, available) if (frame := problems.run(read, name))]
    if not frames and not problems.lines:
        problems.add(f"{part / 'velodyne'}: holds no .bin files")
    problems.raise_if_any(root)
    return DetectionData(frames, class_names_of(frames, CLASSES), "kitti")


def camera_view(frame: Frame, cloud: PointCloud) -> tuple[Frame, PointCloud]:
    """Only what the camera sees: KITTI labels nothing else. Boxes stay where their centre is in view."""
    calibration = frame.calibration
    if calibration is None:
        raise InputError(f"{frame.path}: has no calibration, so the camera's view is unknown")
    if frame.boxes is not None:
        frame = frame.select(calibration.in_view(frame.boxes[:, :3]))
    return frame, cloud.select(calibration.in_view(cloud.points))


def frame_of_labels(path: Path, points: Path, labels: KittiLabels, calibration: Calibration) -> Frame:
    """A frame of label lines in the camera's frame; raises `InputError` for boxes of no size, naming the file."""
    labels = labels.select(np.array([name != _DONT_CARE for name in labels.names], bool))
    boxes = boxes_of_labels(labels, calibration)
    if wrong := box_problems(boxes, labels.names):
        raise InputError(f"{path}: {wrong}")
    attributes = {
        "difficulty": labels.difficulties(),
        "truncated": labels.truncated,
        "occluded": labels.occluded,
        "alpha": labels.alpha,
        "image_box": labels.image_boxes,
    }
    return Frame(points.stem, points, boxes, labels.names, calibration=calibration, attributes=attributes, layout="kitti")


def _read_frame(part: Path, labelled: bool, name: str) -> Frame:
    points = part / "velodyne" / f"{name}.bin"
    if not points.is_file():
        raise InputError(f"{points}: no such file, but the split lists {name}")
    calibration = read_calibration(part / "calib" / f"{name}.txt")
    calibration = replace(calibration, image_size=_image_size(part / "image_2" / f"{name}.png"))
    if not labelled:
        return Frame(name, points, calibration=calibration, layout="kitti")
    path = part / "label_2" / f"{name}.txt"
    return frame_of_labels(path, points, read_labels(path), calibration)


def _image_size(path: Path) -> tuple[int, int]:
    """Width and height from the head of a PNG file, without reading the picture."""
    if not path.is_file():
        return IMAGE_SIZE
    with path.open("rb") as file:
        head = file.read(24)
    if len(head) < 24 or head[12:16] != b"IHDR":
        raise InputError(f"{path}: not a readable PNG picture")
    width, height = struct.unpack(">II", head[16:24])
    return width, height


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: labels cannot be read: {error}") from error
