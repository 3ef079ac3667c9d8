"""2D poses in arrays: VideoPose3D's `.npz`, those of its Detectron2 script, and `.npy`, `.npz` and `.csv` of one's own."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.video_pose.data.arrays import read_npy
from vsuite.video_pose.data.detection_files import Array, Detections, Found, layout_of, video_of
from vsuite.video_pose.data.objects import read_objects
from vsuite.video_pose.outcome import file_name
from vsuite.video_pose.skeletons import SKELETONS

# What VideoPose3D's metadata call the layouts.
VIDEOPOSE3D = {"coco": "coco17", "h36m": "h36m17"}


def read_arrays(path: Path, layout: str | None, sort: bool) -> list[Detections]:
    """The videos of a `.npz`, `.npy` or `.csv`; see `vsuite.video_pose.data.detections.read_detections`."""
    if path.suffix == ".csv":
        return [_read_csv(path, layout, sort)]
    content = {"poses_2d": read_npy(path)} if path.suffix == ".npy" else read_objects(path)
    try:
        if "positions_2d" in content:
            return _read_videopose3d(path, content, layout)
        if "boxes" in content and "keypoints" in content:
            return [_read_detectron2(path, content, layout)]
    except (TypeError, AttributeError) as error:  # what should hold something, and holds nothing
        raise InputError(f"{path}: is not as VideoPose3D or its Detectron2 script writes it: {error}") from error
    return [_read_plain(path, content, layout)]


def _read_videopose3d(path: Path, content: Mapping[str, Any], layout: str | None) -> list[Detections]:
    """`positions_2d`: subject -> action -> one array (T, J, 2) a camera, or a person."""
    metadata, positions = content.get("metadata"), content["positions_2d"]
    if not isinstance(metadata, Mapping) or not isinstance(positions, Mapping):
        raise InputError(f"{path}: positions_2d and metadata must be dictionaries, as VideoPose3D writes them")
    implied = VIDEOPOSE3D.get(str(metadata.get("layout_name")))
    sizes = metadata.get("video_metadata") or {}
    found = []
    for subject, actions in positions.items():
        size, fps = _size_of(sizes.get(subject), path)
        for action, views in actions.items():
            for number, view in enumerate(views):
                poses = _numbers(view, f"{path}: {subject} {action}")
                skeleton = layout_of(path, implied, layout, poses.shape[1] if poses.ndim == 3 else None)
                name = str(subject) if action == "custom" and len(views) == 1 else f"{subject}_{action}_{number}".replace(" ", "_")
                name = file_name(name)  # results are called so, and a file may name anything
                found.append(_from_array(path, name, poses[None], None, skeleton.name, size, fps))
    return found


def _size_of(entry: Any, path: Path) -> tuple[tuple[int, int] | None, float | None]:
    """Width and height, and frames a second, of VideoPose3D's or Detectron2's notes on a video; None for what they do not say."""
    if not isinstance(entry, Mapping) or "w" not in entry or "h" not in entry:
        return None, None
    fps = entry.get("fps")
    return _checked_size((entry["w"], entry["h"]), path), _checked_rate(fps, path) if fps else None


def _checked_size(size: Any, path: Path) -> tuple[int, int]:
    values = np.ravel(size)
    if values.size != 2 or not np.issubdtype(values.dtype, np.number) or not (values >= 1).all():
        raise InputError(f"{path}: the picture's size must be a width and a height in pixels; got {size!r}")
    return int(values[0]), int(values[1])


def _checked_rate(value: Any, path: Path) -> float:
    values = np.ravel(value)
    if values.size != 1 or values.dtype.kind not in "fiu" or not 1 <= values[0] <= 1000:
        raise InputError(f"{path}: fps must be from 1 to 1000 frames a second; got {value!r}")
    return float(values[0])


def _read_detectron2(path: Path, content: Mapping[str, Any], layout: str | None) -> Detections:
    """For each frame [none of the background, keypoints (N, 4, 17): x, y, logit, probability], COCO's joints."""
    skeleton = layout_of(path, "coco17", layout)
    size, fps = _size_of(content.get("metadata"), path)
    people = []
    for frame, classes in enumerate(content["keypoints"]):
        persons = _numbers(classes[-1] if len(classes) else (), f"{path}: keypoints of frame {frame}")
        if persons.size == 0:
            continue
        if persons.ndim != 3 or persons.shape[1:] != (4, skeleton.num_joints):
            raise InputError(f"{path}: keypoints of frame {frame} must be (N, 4, {skeleton.num_joints}); got {persons.shape}")
        people += [Found(frame, None, person[:2].T.copy(), person[3]) for person in persons]
    return Detections(path.stem, skeleton, people, len(content["keypoints"]), size, fps)


def _read_plain(path: Path, content: Mapping[str, Any], layout: str | None) -> Detections:
    """`poses_2d` or `keypoints`, (T, J, 2 or 3) or (M, T, J, 2 or 3), and where they are there: scores, layout, size and fps."""
    name = next((key for key in ("poses_2d", "keypoints") if key in content), None)
    if name is None:
        raise InputError(f"{path}: holds neither poses_2d nor keypoints; it has {', '.join(content) or 'nothing'}")
    poses = _numbers(content[name], f"{path}: {name}")
    poses = poses[None] if poses.ndim == 3 else poses
    size = _checked_size(content["size"], path) if "size" in content else None
    fps = _checked_rate(content["fps"], path) if "fps" in content else None
    implied = str(content["layout"]) if "layout" in content else None
    scores = _numbers(content["scores"], f"{path}: scores") if "scores" in content else None
    if poses.ndim != 4 or poses.shape[-1] not in (2, 3) or not poses.size:
        raise InputError(f"{path}: {name} must be (T, J, 2 or 3) or (M, T, J, 2 or 3); got {poses.shape}")
    skeleton = layout_of(path, implied, layout, poses.shape[2])
    return _from_array(path, path.stem, poses, scores, skeleton.name, size, fps)


def _numbers(value: Any, where: str) -> Array:
    try:
        return np.asarray(value, np.float32)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} is no array of numbers") from error


def _from_array(
    path: Path, name: str, poses: Array, scores: Array | None, layout: str, size: tuple[int, int] | None, fps: float | None
) -> Detections:
    """A video from (M, T, J, 2 or 3). A joint at exactly (0, 0) is missing where there are no scores; so is a person without joints."""
    if poses.ndim != 4 or poses.shape[-1] not in (2, 3):
        raise InputError(f"{path}: poses of {name} must be (T, J, 2 or 3); got {poses.shape[1:]}")
    points = poses[..., :2]
    if scores is not None:
        scores = scores.reshape(-1, *scores.shape[-2:]) if scores.ndim in (2, 3) else scores
        if scores.shape != points.shape[:3]:
            raise InputError(f"{path}: scores must be {points.shape[:3]}, one a joint; got {scores.shape}")
    elif poses.shape[-1] == 3:
        scores = poses[..., 2]
    else:
        scores = (points != 0).any(axis=-1).astype(np.float32)
    everybody = [
        Found(frame, person if len(points) > 1 else 0, points[person, frame], scores[person, frame])
        for frame in range(points.shape[1])
        for person in range(len(points))
    ]
    seen = [person for person in everybody if np.isfinite(person.visible()).any()]
    if not seen:
        raise InputError(f"{path}: every joint of {name} is missing (NaN, or a score of 0)")
    return Detections(name, SKELETONS[layout], seen, points.shape[1], size, fps)


def _read_csv(path: Path, layout: str | None, sort: bool) -> Detections:
    """A line a person and frame. Columns: frame, person (if there are several), then NAME_x, NAME_y and perhaps NAME_score of each
    joint, or x0, y0 and perhaps score0 where the layout is named. Empty is missing."""
    header, table = _table(path)
    joints = [name.removesuffix("_x") for name in header if name.endswith("_x")]
    numbered = [name for name in header if name[:1] == "x" and name[1:].isdecimal()]
    if joints:
        implied = next((known for known, found in SKELETONS.items() if set(found.names) == set(joints)), None)
        if implied is None:
            raise InputError(f"{path}: the joints {', '.join(joints[:4])}, ... are those of no known layout")
        skeleton = layout_of(path, implied, layout)
        columns = [(f"{joint}_x", f"{joint}_y", f"{joint}_score") for joint in skeleton.names]
    else:
        skeleton = layout_of(path, None, layout, len(numbered))
        columns = [(f"x{joint}", f"y{joint}", f"score{joint}") for joint in range(skeleton.num_joints)]
    places = {name: place for place, name in enumerate(header)}
    missing = [name for x, y, _ in columns for name in (x, y) if name not in places]
    if missing:
        raise InputError(f"{path}: lacks the column {missing[0]}")
    points = np.stack([table[:, [places[x], places[y]]] for x, y, _ in columns], axis=1).astype(np.float32)  # lines, J, 2
    scores = np.stack([table[:, places[s]] if s in places else np.ones(len(table)) for *_, s in columns], axis=1).astype(np.float32)
    return _from_lines(path, skeleton.name, table[:, places["frame"]], _column(table, places, "person"), points, scores, sort)


def _table(path: Path) -> tuple[list[str], NDArray[np.float64]]:
    """The header of a CSV file and the numbers below it, one of which is the frame's; NaN where a cell is empty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            lines = [(reader.line_num, line) for line in reader if line]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(f"{path}: cannot be read as a table: {' '.join(str(error).split())}") from error
    if not lines:
        raise InputError(f"{path}: is empty")
    header = [name.strip() for name in lines.pop(0)[1]]
    if "frame" not in header:
        raise InputError(f"{path}: has no column 'frame'; commas stand between its columns")
    if not lines:
        raise InputError(f"{path}: has a header and no line below it")
    rows = []
    for number, line in lines:
        if len(line) != len(header):
            raise InputError(f"{path}: line {number} has {len(line)} cells, and the header {len(header)}")
        try:
            rows.append([float(cell) if cell.strip() else np.nan for cell in line])
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}") from error
    return header, np.array(rows, np.float64)


def _column(table: Any, places: Mapping[str, int], name: str) -> Any:
    return table[:, places[name]] if name in places else np.zeros(len(table))


def _from_lines(path: Path, layout: str, frames: Any, persons: Any, points: Array, scores: Array, sort: bool) -> Detections:
    if any(not (np.isfinite(column) & (column == np.round(column)) & (abs(column) < 2**53)).all() for column in (frames, persons)):
        raise InputError(f"{path}: 'frame' and 'person' must be whole numbers on every line")
    numbers = frames.astype(int).tolist()
    people = [Found(n, int(p), point, score) for n, p, point, score in zip(numbers, persons, points, scores, strict=True)]
    found = video_of(path, SKELETONS[layout], people, numbers, sort=sort)
    seen = [person for person in found.people if np.isfinite(person.visible()).any()]
    if not seen:
        raise InputError(f"{path}: every joint is missing (empty, NaN, or a score of 0)")
    return replace(found, people=seen)
