"""nuScenes: its json tables, several sweeps in one frame, and its form of results.

Points and boxes stay in the sensor's own frame (x right, y forward, z up), as the files of points hold them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.pointcloud.data.calibration import move, wrap
from vsuite.pointcloud.data.clouds import NUSCENES_CLOSE
from vsuite.pointcloud.data.frames import DetectionData, Frame, Problems, Sweep, box_problems, class_names_of

CLASSES = ("car", "truck", "construction_vehicle", "bus", "trailer", "barrier", "motorcycle", "bicycle", "pedestrian", "traffic_cone")
CATEGORIES = {
    "vehicle.car": "car",
    "vehicle.truck": "truck",
    "vehicle.construction": "construction_vehicle",
    "vehicle.bus.bendy": "bus",
    "vehicle.bus.rigid": "bus",
    "vehicle.trailer": "trailer",
    "movable_object.barrier": "barrier",
    "vehicle.motorcycle": "motorcycle",
    "vehicle.bicycle": "bicycle",
    "human.pedestrian.adult": "pedestrian",
    "human.pedestrian.child": "pedestrian",
    "human.pedestrian.construction_worker": "pedestrian",
    "human.pedestrian.police_officer": "pedestrian",
    "movable_object.trafficcone": "traffic_cone",
}
"""The categories that the detection benchmark counts, and its class for each; other categories are left out."""

_TABLES = ("scene", "sample", "sample_data", "calibrated_sensor", "sensor", "ego_pose", "sample_annotation", "instance", "category")
_LIDAR = "LIDAR_TOP"
_MINI_TRAIN = (61, 553, 655, 757, 796, 1077, 1094, 1100)
_MINI_VAL = (103, 916)
# fmt: off
_VAL = (
    3, *range(12, 19), 35, 36, 38, 39, *range(92, 111), 221, *range(268, 279), *range(329, 333), *range(344, 347), *range(519, 525),
    *range(552, 566), 625, 626, 627, 629, 630, *range(632, 639), 770, 771, 775, 777, 778, *range(780, 785), *range(794, 799), 799,
    800, 802, *range(904, 918), *range(919, 932), 962, 963, 966, 967, 968, 969, 971, 972, *range(1059, 1074),
)
# fmt: on

Record = dict[str, Any]
Table = dict[str, Record]


class Tables:
    """The json tables of one version, each a dictionary by token.

    Raises:
        InputError: for a table that is missing or no list of records.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        problems = Problems()
        self.records: dict[str, Table] = {}
        for name in _TABLES:
            try:
                self.records[name] = {record["token"]: record for record in json.loads((folder / f"{name}.json").read_text("utf-8"))}
            except FileNotFoundError:
                problems.add(f"{folder / name}.json: no such file")
            except (OSError, ValueError, TypeError, KeyError) as error:
                problems.add(f"{folder / name}.json: not a readable table: {error}")
        problems.raise_if_any(folder)
        self.annotations: dict[str, list[Record]] = {}
        for annotation in self.records["sample_annotation"].values():
            self.annotations.setdefault(annotation["sample_token"], []).append(annotation)
        self.key_frames = {
            data["sample_token"]: data
            for data in self.records["sample_data"].values()
            if data["is_key_frame"] and self._channel(data) == _LIDAR
        }

    def get(self, table: str, token: str) -> Record:
        """One record; raises `InputError` for a token that the table lacks."""
        if token not in self.records[table]:
            raise InputError(f"{self.folder / table}.json: has no record {token!r}, which another table refers to")
        return self.records[table][token]

    def to_global(self, data: Record) -> np.ndarray:
        """(4, 4), from the sensor frame of a record of sample_data to the global frame."""
        pose, sensor = self.get("ego_pose", data["ego_pose_token"]), self.get("calibrated_sensor", data["calibrated_sensor_token"])
        return pose_matrix(pose) @ pose_matrix(sensor)

    def category(self, annotation: Record) -> str:
        """Name of an annotation's category."""
        if "category_name" in annotation:
            return annotation["category_name"]
        return self.get("category", self.get("instance", annotation["instance_token"])["category_token"])["name"]

    def velocity(self, annotation: Record) -> np.ndarray:
        """(3,) metres per second in the global frame, from the annotations before and after; NaN where none is within 1.5 s."""
        first = self._neighbour(annotation, "prev")
        last = self._neighbour(annotation, "next")
        seconds = self._time(last) - self._time(first)
        both = first is not annotation and last is not annotation
        if first is last or seconds <= 0 or seconds > (3.0 if both else 1.5):
            return np.full(3, np.nan)
        return (np.array(last["translation"]) - np.array(first["translation"])) / seconds

    def _neighbour(self, annotation: Record, side: str) -> Record:
        return self.get("sample_annotation", annotation[side]) if annotation.get(side) else annotation

    def _time(self, annotation: Record) -> float:
        return self.get("sample", annotation["sample_token"])["timestamp"] * 1e-6

    def _channel(self, data: Record) -> str:
        return self.get("sensor", self.get("calibrated_sensor", data["calibrated_sensor_token"])["sensor_token"])["channel"]


SWEEPS = 10
"""Sweeps in a frame of nuScenes' benchmark, half a second: what models that read the points' age were trained on."""


def sweeps_for(columns: Collection[str]) -> int:
    """How many sweeps make a frame for a model that reads these columns."""
    return SWEEPS if "time" in columns else 1


def read_nuscenes(root: str | Path, split: str | None = None, *, version: str | None = None, sweeps: int = 1) -> DetectionData:
    """Reads the lidar key frames.

    Args:
        root: the folder with samples/, sweeps/ and v1.0-mini/ (or v1.0-trainval/, v1.0-test/).
        split: "mini_train", "mini_val", "train", "val" (the official ones), or a name in ROOT/ImageSets, whose file lists scenes;
            "train" and "val" of v1.0-mini are its own two. Without it, all scenes.
        version: folder of the tables, where there are several.
        sweeps: how many sweeps make a frame, the key frame included; with more than one, the age of each point is the column `time`.

    Returns:
        frames named by sample token, with boxes (M, 9): velocities are NaN where they are unknown. Attributes: num_points. Points
        within 1 m of the sensor are left out of each sweep, as by the devkit.

    Raises:
        InputError: with a line for everything that is wrong.
    """
    root = Path(root)
    tables = Tables(_version_folder(root, version))
    scenes = _scenes_of(root, split, tables)
    problems = Problems()
    read = partial(_read_frame, root, tables, sweeps)
    samples = [sample for sample in tables.records["sample"].values() if tables.get("scene", sample["scene_token"])["name"] in scenes]
    samples.sort(key=lambda sample: (tables.get("scene", sample["scene_token"])["name"], sample["timestamp"]))
    frames = [frame for sample in samples if (frame := problems.run(read, sample))]
    if not samples:
        problems.add(f"{tables.folder}: has no samples" + (f" of the split {split!r}" if split else ""))
    problems.raise_if_any(root)
    return DetectionData(frames, class_names_of(frames, CLASSES), "nuscenes")


def _version_folder(root: Path, version: str | None) -> Path:
    found = sorted(path.name for path in root.glob("v1.0-*") if path.is_dir())
    if version is None and len(found) != 1:
        raise InputError(f"{root}: holds {', '.join(found) or 'no folder v1.0-...'}; name one version")
    name = version or found[0]
    if name not in found:
        raise unknown("version of nuScenes", name, found)
    return root / name


def _scenes_of(root: Path, split: str | None, tables: Tables) -> set[str]:
    scenes = {record["name"] for record in tables.records["scene"].values()}
    if split is None:
        return scenes
    listed = root / "ImageSets" / f"{split}.txt"
    if listed.is_file():
        return set(listed.read_text("utf-8-sig").split())
    mini = tables.folder.name.endswith("mini")
    train = _MINI_TRAIN if mini else None
    splits = {"val": _MINI_VAL if mini else _VAL, "mini_train": _MINI_TRAIN, "mini_val": _MINI_VAL, "train": train}
    if split not in splits:
        raise unknown("split of nuScenes", split, splits)
    numbers = splits[split]
    if numbers is None:
        return scenes - {f"scene-{number:04d}" for number in _VAL}
    return scenes & {f"scene-{number:04d}" for number in numbers}


def _read_frame(root: Path, tables: Tables, num_sweeps: int, sample: Record) -> Frame:
    data = tables.key_frames.get(sample["token"])
    if data is None:
        raise InputError(f"{tables.folder}/sample_data.json: the sample {sample['token']} has no key frame of {_LIDAR}")
    path = root / data["filename"]
    if not path.is_file():
        raise InputError(f"{path}: no such file, but sample_data.json lists it")
    to_global = tables.to_global(data)
    annotations = [a for a in tables.annotations.get(sample["token"], []) if tables.category(a) in CATEGORIES]
    boxes = np.array([_box(tables, annotation, to_global) for annotation in annotations], np.float32).reshape(-1, 9)
    labels = [CATEGORIES[tables.category(annotation)] for annotation in annotations]
    if wrong := box_problems(boxes, labels):
        raise InputError(f"{tables.folder}/sample_annotation.json: sample {sample['token']}: {wrong}")
    return Frame(
        sample["token"],
        path,
        boxes,
        labels,
        columns=("intensity", "time") if num_sweeps > 1 else ("intensity",),
        layout="nuscenes",
        attributes={"num_points": np.array([annotation.get("num_lidar_pts", -1) for annotation in annotations], np.int64)},
        to_global=to_global,
        sweeps=_earlier_sweeps(root, tables, data, to_global, num_sweeps - 1),
        remove_close=NUSCENES_CLOSE,
    )


def _earlier_sweeps(root: Path, tables: Tables, data: Record, to_global: np.ndarray, count: int) -> tuple[Sweep, ...]:
    """Up to `count` sweeps before a key frame; the first frames of a scene have fewer."""
    found: list[Sweep] = []
    to_frame = np.linalg.inv(to_global)
    earlier = data
    while len(found) < count and earlier.get("prev"):
        earlier = tables.get("sample_data", earlier["prev"])
        path = root / earlier["filename"]
        if not path.is_file():
            raise InputError(f"{path}: no such file, but sample_data.json lists it")
        found.append(Sweep(path, to_frame @ tables.to_global(earlier), (data["timestamp"] - earlier["timestamp"]) * 1e-6))
    return tuple(found)


def _box(tables: Tables, annotation: Record, to_global: np.ndarray) -> np.ndarray:
    """One annotation of the global frame as a box (9,) in the sensor's."""
    width, length, height = annotation["size"]
    to_sensor = np.linalg.inv(to_global)
    centre = move(np.array([annotation["translation"]]), to_sensor)[0]
    heading = to_sensor[:3, :3] @ quaternion_matrix(annotation["rotation"])[:, 0]
    velocity = to_sensor[:3, :3] @ tables.velocity(annotation)
    return np.array([*centre, length, width, height, np.arctan2(heading[1], heading[0]), *velocity[:2]])


def pose_matrix(record: Mapping[str, Any]) -> np.ndarray:
    """(4, 4) of a record with `rotation` (quaternion w x y z) and `translation`."""
    matrix = np.eye(4)
    matrix[:3, :3] = quaternion_matrix(record["rotation"])
    matrix[:3, 3] = record["translation"]
    return matrix


def quaternion_matrix(quaternion: Any) -> np.ndarray:
    """(3, 3) rotation of a quaternion w x y z, which need not have unit length."""
    w, x, y, z = np.asarray(quaternion, np.float64) / np.linalg.norm(quaternion)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def boxes_to_global(boxes: np.ndarray, to_global: np.ndarray) -> list[Record]:
    """Boxes (M, 7 or 9) of the sensor frame as nuScenes writes them: translation, size (width length height), rotation, velocity.

    The rotation turns about the global z axis, as in the annotations; the sensor's own tilt is not added.
    """
    centres = move(boxes[:, :3], to_global)
    yaws = boxes[:, 6].astype(np.float64)
    headings = np.column_stack([np.cos(yaws), np.sin(yaws), np.zeros(len(boxes))]) @ to_global[:3, :3].T
    angles = np.arctan2(headings[:, 1], headings[:, 0])
    speeds = np.zeros((len(boxes), 3))
    if boxes.shape[1] > 7:
        speeds[:, :2] = np.nan_to_num(boxes[:, 7:9])
    speeds = speeds @ to_global[:3, :3].T
    return [
        {
            "translation": centre.tolist(),
            "size": [float(box[4]), float(box[3]), float(box[5])],
            "rotation": [float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))],
            "velocity": speed[:2].tolist(),
        }
        for box, centre, angle, speed in zip(boxes, centres, angles, speeds, strict=True)
    ]


def boxes_from_global(records: list[Record], to_global: np.ndarray) -> np.ndarray:
    """(M, 9) float32 boxes of the sensor frame, from results as nuScenes writes them."""
    to_sensor = np.linalg.inv(to_global)
    rows = []
    for record in records:
        width, length, height = record["size"]
        centre = move(np.array([record["translation"]]), to_sensor)[0]
        heading = to_sensor[:3, :3] @ quaternion_matrix(record["rotation"])[:, 0]
        velocity = to_sensor[:3, :3] @ np.array([*record.get("velocity", (0.0, 0.0)), 0.0])
        rows.append([*centre, length, width, height, wrap(np.arctan2(heading[1], heading[0])), *velocity[:2]])
    return np.array(rows, np.float32).reshape(-1, 9)
