"""Waymo's open data set in the KITTI-like form that mmdetection3d's converter writes.

Points have six columns, x y z intensity elongation time, and the labels of all cameras together are in label_all. Intensity has no
upper bound, so that detectors train on its hyperbolic tangent: ask for it here with `tanh=TANH`, or in a recipe, but not in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.calibration import read_calibration
from vsuite.pointcloud.data.clouds import PointCloud, check_sweep, read_cloud
from vsuite.pointcloud.data.frames import DetectionData, Frame, Problems, class_names_of, split_names
from vsuite.pointcloud.data.kitti import frame_of_labels, read_labels

CLASSES = ("Vehicle", "Car", "Pedestrian", "Cyclist", "Sign")
TANH = ("intensity", "elongation")


def apply_tanh(cloud: PointCloud, columns: Sequence[str] = TANH) -> PointCloud:
    """The cloud with the hyperbolic tangent of the columns named."""
    cloud.array(columns)
    return replace(cloud, columns=cloud.columns | {name: np.tanh(cloud.columns[name]) for name in columns})


def read_sweep(path: str | Path, *, tanh: Sequence[str] = ()) -> PointCloud:
    """Points of one file of six columns, with the hyperbolic tangent of those named in `tanh`."""
    cloud = read_cloud(path, layout="waymo")
    check_sweep(cloud)
    return apply_tanh(cloud, tanh)


def read_waymo(root: str | Path, split: str | None = None, *, tanh: Sequence[str] = ()) -> DetectionData:
    """Reads the converted data set.

    Args:
        root: the folder with training/{velodyne,calib,label_all} and ImageSets/, or `training` itself. Converters that write no
            label_all leave label_0 to label_4, one folder a camera; they are taken together.
        split: a name in ImageSets; without it, all frames.
        tanh: columns whose hyperbolic tangent is taken.

    Raises:
        InputError: with a line for each frame that is wrong.
    """
    root = Path(root)
    part = root if (root / "velodyne").is_dir() else root / ("testing" if split == "test" else "training")
    if not (part / "velodyne").is_dir():
        raise InputError(f"{root}: not Waymo in KITTI's form: there is no {part.name}/velodyne")
    sets = root if (root / "ImageSets").is_dir() or part != root else root.parent
    available = [path.stem for path in (part / "velodyne").glob("*.bin")]
    problems = Problems()
    read = partial(_read_frame, part, _label_folders(part), tuple(tanh))
    frames = [frame for name in split_names(sets, split, available) if (frame := problems.run(read, name))]
    if not frames and not problems.lines:
        problems.add(f"{part / 'velodyne'}: holds no .bin files")
    problems.raise_if_any(root)
    return DetectionData(frames, class_names_of(frames, CLASSES), "waymo")


def _label_folders(part: Path) -> list[Path]:
    if (part / "label_all").is_dir():
        return [part / "label_all"]
    return [part / f"label_{camera}" for camera in range(5) if (part / f"label_{camera}").is_dir()]


def _read_frame(part: Path, folders: list[Path], tanh: tuple[str, ...], name: str) -> Frame:
    points = part / "velodyne" / f"{name}.bin"
    if not points.is_file():
        raise InputError(f"{points}: no such file, but the split lists {name}")
    calibration = read_calibration(part / "calib" / f"{name}.txt", camera=0, transform="Tr_velo_to_cam_0")
    calibration = replace(calibration, image_size=(1920, 1280), bottom="lidar")
    prepare = partial(apply_tanh, columns=tanh) if tanh else None
    common: dict[str, Any] = {"layout": "waymo", "columns": ("intensity", "elongation"), "prepare": prepare}
    if not folders:
        return replace(Frame(name, points, calibration=calibration), **common)
    paths = [path for folder in folders if (path := folder / f"{name}.txt").is_file()]
    if not paths:
        raise InputError(f"{folders[0] / name}.txt: no such file, but there are points {points.name}")
    parts = [replace(frame_of_labels(path, points, read_labels(path, scores=False), calibration), **common) for path in paths]
    if len(parts) == 1:
        return parts[0]
    return replace(
        parts[0],
        boxes=np.concatenate([part.boxes for part in parts if part.boxes is not None]),
        labels=[label for part in parts for label in part.labels or ()],
        attributes={key: np.concatenate([part.attributes[key] for part in parts]) for key in parts[0].attributes},
    )
