"""Predicted boxes as files: KITTI's label files, nuScenes' results, and a JSON of our own; each with its reader."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import write_text
from vsuite.pointcloud.data import kitti, nuscenes
from vsuite.pointcloud.data.calibration import Calibration
from vsuite.pointcloud.data.frames import box_problems

FORMAT = "vsuite boxes 1"
_CONVENTION = "x y z (centre) length width height yaw [vx vy]; metres, radians; x forward or as the sensor's, z up, yaw from +x to +y"
_NUSCENES_NAMES = {"vehicle": "car", "van": "car", "cyclist": "bicycle", "person_sitting": "pedestrian"}
_MOST_BOXES = 500  # a sample; nuScenes refuses more


@dataclass
class Boxes:
    """Boxes of one frame with names and scores.

    Attributes:
        boxes: (M, 7) or (M, 9) float32. names: class of each. scores: (M,) float32 in 0..1; 1 for ground truth.
    """

    boxes: np.ndarray
    names: list[str]
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.boxes)


NOTHING = Boxes(np.zeros((0, 7), np.float32), [], np.zeros(0, np.float32))


def write_json(path: str | Path, frames: Mapping[str, Boxes]) -> None:
    """Writes all frames into one file, by name. Values come back exactly."""
    content = {
        "format": FORMAT,
        "box": _CONVENTION,
        "frames": {
            name: [
                {"label": label, "score": _plain(score), "box": [_plain(value) for value in box]}
                for box, label, score in zip(boxes.boxes, boxes.names, boxes.scores, strict=True)
            ]
            for name, boxes in frames.items()
        },
    }
    write_text(Path(path), json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | Path) -> dict[str, Boxes]:
    """Reads what `write_json` wrote; also a file of one frame, {"boxes": [{"label", "box", ...}]}, which is named by its file.

    Raises:
        InputError: for another file, and for boxes that are none, naming the frame.
    """
    path = Path(path)
    content = _load(path)
    frames = content.get("frames") if isinstance(content, dict) else None
    if isinstance(content, dict) and frames is None and isinstance(content.get("boxes"), list):
        frames = {path.stem: content["boxes"]}
    if not isinstance(frames, dict):
        raise InputError(f'{path}: not a file of boxes; it has no "frames" (name -> list of boxes) and no "boxes"')
    return {name: _boxes_of(records, f"{path}: frame {name}") for name, records in frames.items()}


def write_kitti(folder: str | Path, frames: Mapping[str, Boxes], calibrations: Mapping[str, Calibration] | None = None) -> None:
    """Writes a label file with scores for each frame.

    Args:
        calibrations: of each frame; frames without one are written for `Calibration.nominal`, a camera at the lidar.
    """
    for name, boxes in frames.items():
        calibration = (calibrations or {}).get(name) or Calibration.nominal()
        if spaced := [label for label in boxes.names if len(label.split()) != 1]:
            raise InputError(f"{Path(folder) / name}.txt: KITTI's class names are single words; got {spaced[0]!r}")
        kitti.write_labels(Path(folder) / f"{name}.txt", kitti.labels_of_boxes(boxes.boxes, boxes.names, calibration, boxes.scores))


def read_kitti(folder: str | Path, calibrations: Mapping[str, Calibration] | None = None) -> dict[str, Boxes]:
    """Reads a folder of label files; the reverse of `write_kitti`. Lines without a score get 1, DontCare is left out."""
    folder = Path(folder)
    paths = sorted(folder.glob("*.txt"))
    if not paths:
        raise InputError(f"{folder}: holds no label files (.txt)")
    frames = {}
    for path in paths:
        labels = kitti.read_labels(path)
        labels = labels.select(np.array([name != "DontCare" for name in labels.names], bool))
        boxes = kitti.boxes_of_labels(labels, (calibrations or {}).get(path.stem) or Calibration.nominal())
        scores = np.ones(len(labels)) if labels.scores is None else labels.scores
        frames[path.stem] = _checked(boxes, labels.names, scores, str(path))
    return frames


def write_nuscenes(path: str | Path, frames: Mapping[str, Boxes], poses: Mapping[str, np.ndarray] | None = None) -> None:
    """Writes nuScenes' results: frames are named by sample token, boxes are in the global frame.

    KITTI's and Waymo's classes get nuScenes' names ("Car" -> "car", "Cyclist" -> "bicycle"), because its tools refuse others.

    Args:
        poses: (4, 4) from sensor to global, of each frame (`Frame.to_global`); a frame without one stays in its own frame.
    """
    results = {}
    for name, boxes in frames.items():
        order = np.argsort(-boxes.scores, kind="stable")[:_MOST_BOXES]
        names = [_nuscenes_name(boxes.names[i]) for i in order]
        records = nuscenes.boxes_to_global(boxes.boxes[order], _pose(poses, name))
        results[name] = [
            record
            | {
                "sample_token": name,
                "detection_name": label,
                "detection_score": _plain(boxes.scores[i]),
                "attribute_name": _attribute(label, record["velocity"]),
            }
            for i, label, record in zip(order, names, records, strict=True)
        ]
    used = {f"use_{sensor}": sensor == "lidar" for sensor in ("camera", "lidar", "radar", "map", "external")}
    write_text(Path(path), json.dumps({"meta": used, "results": results}) + "\n")


def read_nuscenes(path: str | Path, poses: Mapping[str, np.ndarray] | None = None) -> dict[str, Boxes]:
    """Reads nuScenes' results into the sensor frames; the reverse of `write_nuscenes`."""
    path = Path(path)
    content = _load(path)
    if not isinstance(content, dict) or not isinstance(content.get("results"), dict):
        raise InputError(f'{path}: not nuScenes\' results; it has no "results"')
    frames = {}
    for name, records in content["results"].items():
        try:
            boxes = nuscenes.boxes_from_global(records, _pose(poses, name))
            names = [str(record["detection_name"]) for record in records]
            scores = np.array([record["detection_score"] for record in records], np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{path}: sample {name}: damaged results: {error!r}") from error
        frames[name] = _checked(boxes, names, scores, f"{path}: sample {name}")
    return frames


def _pose(poses: Mapping[str, np.ndarray] | None, name: str) -> np.ndarray:
    return poses[name] if poses is not None and name in poses else np.eye(4)


def _nuscenes_name(name: str) -> str:
    """The class of nuScenes' detection task, where there is one for it."""
    plain = _NUSCENES_NAMES.get(name.lower(), name.lower())
    return plain if plain in nuscenes.CLASSES else name


def _attribute(name: str, velocity: Sequence[float]) -> str:
    """nuScenes asks for an attribute; moving is faster than 0.2 m/s, as its baselines say."""
    moving = float(np.linalg.norm(velocity)) > 0.2
    if name == "pedestrian":
        return "pedestrian.moving" if moving else "pedestrian.standing"
    if name in ("bicycle", "motorcycle"):
        return "cycle.with_rider" if moving else "cycle.without_rider"
    if name in ("car", "truck", "bus", "trailer", "construction_vehicle"):
        return "vehicle.moving" if moving else "vehicle.parked"
    return ""


def _load(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file: {error}") from error


def _boxes_of(records: Any, where: str) -> Boxes:
    try:
        boxes = np.array([[np.nan if value is None else float(value) for value in record["box"]] for record in records], np.float32)
        names = [str(record["label"]) for record in records]
        scores = np.array([float(record.get("score", 1)) for record in records], np.float32)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where}: damaged boxes: {error!r}; each needs a label and a box ({_CONVENTION})") from error
    return _checked(boxes if len(boxes) else boxes.reshape(0, 7), names, scores, where)


def _checked(boxes: np.ndarray, names: list[str], scores: np.ndarray, where: str) -> Boxes:
    if boxes.ndim != 2 or boxes.shape[1] not in (7, 9):
        raise InputError(f"{where}: boxes have 7 values, or 9 with a velocity")
    if wrong := box_problems(boxes, names):
        raise InputError(f"{where}: {wrong}")
    return Boxes(boxes.astype(np.float32), names, scores.astype(np.float32))


def _plain(value: Any) -> float | None:
    """The shortest decimal that gives a float32 back; None for NaN (an unknown velocity)."""
    return None if np.isnan(value) else float(str(np.float32(value)))
