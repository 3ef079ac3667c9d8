"""Detection data sets: which layout a folder has, and the package's own (OpenPCDet's custom layout).

ROOT/points/NAME.bin        or .npy, .ply, .pcd, ...; float32 x y z intensity
ROOT/labels/NAME.txt        lines "x y z length width height yaw class" (z at the centre, metres, radians)
ROOT/ImageSets/train.txt    names, one a line; and val.txt
ROOT/dataset.json           optional: {"classes": [...], "columns": [...]}
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.core.files import write_text
from vsuite.pointcloud.data.calibration import wrap
from vsuite.pointcloud.data.clouds import PointCloud, is_cloud, write_cloud
from vsuite.pointcloud.data.frames import (
    DetectionData,
    Frame,
    Problems,
    Sweep,
    box_problems,
    check_labels_fit,
    class_names_of,
    split_names,
)
from vsuite.pointcloud.data.kitti import read_kitti
from vsuite.pointcloud.data.nuscenes import read_nuscenes
from vsuite.pointcloud.data.waymo import read_waymo

__all__ = ["DetectionData", "Frame", "Sweep", "check_dataset", "read_custom", "read_detection", "write_frame", "write_split"]


def read_detection(root: str | Path, split: str | None = None, *, layout: str | None = None, sweeps: int = 1) -> DetectionData:
    """Reads a detection data set, of which it finds out the layout.

    Args:
        root: a folder of KITTI (training/velodyne), Waymo in KITTI's form (training/velodyne and label_all), nuScenes
            (v1.0-.../) or the package's own layout (points/).
        split: such as "train" or "val"; without it, everything.
        layout: "kitti", "waymo", "nuscenes" or "custom", where the folders do not tell.
        sweeps: how many make a frame of nuScenes; see `read_nuscenes`. The other layouts have one.

    Raises:
        InputError: for a folder in none of these layouts; and with a line for everything that is wrong in one that is.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: {'is a file; a detection data set is a folder' if root.exists() else 'no such folder'}")
    readers: dict[str, Callable[[Path, str | None], DetectionData]] = {
        "custom": read_custom,
        "kitti": read_kitti,
        "nuscenes": partial(read_nuscenes, sweeps=sweeps),
        "waymo": read_waymo,
    }
    layout = layout or _layout_of(root)
    if layout not in readers:
        raise unknown("layout of a detection data set", layout, readers)
    return readers[layout](root, split)


def _layout_of(root: Path) -> str:
    if any(path.is_dir() for path in root.glob("v1.0-*")):
        return "nuscenes"
    for part in (root, root / "training", root / "testing"):
        if (part / "velodyne").is_dir():
            return "waymo" if any(part.glob("label_[a0]*")) or _is_waymo_calib(part) else "kitti"
    if (root / "points").is_dir():
        return "custom"
    layouts = "points/ (and labels/), training/velodyne/ (KITTI, Waymo) or v1.0-mini/ (nuScenes)"
    raise InputError(f"{root}: not a known detection data set; it would hold {layouts}")


def _is_waymo_calib(part: Path) -> bool:
    first = next((part / "calib").glob("*.txt"), None)
    return first is not None and "Tr_velo_to_cam_0" in first.read_text("utf-8", "replace")


# --- the package's own layout ---


def read_custom(root: str | Path, split: str | None = None) -> DetectionData:
    """Reads the package's own layout (see the top of this file).

    Raises:
        InputError: with a line for each frame that is wrong, labels without points among them.
    """
    root = Path(root)
    settings = _read_settings(root / "dataset.json")
    files: dict[str, Path] = {}
    problems = Problems()
    for path in sorted((root / "points").iterdir() if (root / "points").is_dir() else ()):
        if is_cloud(path) and not path.name.startswith("."):
            name = _stem(path)
            if name in files:
                problems.add(f"{path}: there is {files[name].name} for the same frame")
            files[name] = path
    labelled = (root / "labels").is_dir()
    if split is None and labelled:
        orphans = sorted(path.name for path in (root / "labels").glob("*.txt") if path.stem not in files)
        for name in orphans:
            problems.add(f"{root / 'labels' / name}: labels of no frame in points/")
    read = partial(_read_frame, root, files, labelled, settings)
    frames = [frame for name in split_names(root, split, list(files)) if (frame := problems.run(read, name))]
    if not frames and not problems.lines:
        problems.add(f"{root / 'points'}: holds no point cloud files")
    problems.raise_if_any(root)
    classes = settings.get("classes")
    return DetectionData(frames, list(classes) if classes else class_names_of(frames), "custom")


def _read_settings(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text("utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: not a readable JSON file: {error}") from error
    lists = isinstance(settings, dict) and all(
        isinstance(settings.get(key, []), list) and all(isinstance(item, str) for item in settings.get(key, []))
        for key in ("classes", "columns")
    )
    if not lists:
        raise InputError(f'{path}: should be {{"classes": [names], "columns": [names]}}, both optional')
    return settings


def _read_frame(root: Path, files: dict[str, Path], labelled: bool, settings: dict[str, Any], name: str) -> Frame:
    if name not in files:
        raise InputError(f"{root / 'points' / name}.*: no such file, but the split lists {name}")
    columns = tuple(column for column in settings.get("columns", ("intensity",)) if column not in ("x", "y", "z"))
    frame = Frame(name, files[name], columns=columns)
    if not labelled:
        return frame
    frame.boxes, frame.labels = read_boxes(root / "labels" / f"{name}.txt")
    if unlisted := sorted(set(frame.labels) - set(settings.get("classes") or frame.labels)):
        raise InputError(f"{root / 'labels' / name}.txt: the class {', '.join(unlisted)} is not among those of dataset.json")
    return frame


def read_boxes(path: Path) -> tuple[np.ndarray, list[str]]:
    """Boxes (M, 7) float32 and class names of one label file of the package's layout.

    Raises:
        InputError: naming the file and the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: labels cannot be read: {error}") from error
    rows, names = [], []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 8:
            raise InputError(f"{path}: line {number} has {len(words)} values; a box is 'x y z length width height yaw class'")
        try:
            rows.append([float(word) for word in words[:7]])
        except ValueError as error:
            raise InputError(f"{path}: line {number}: {error}; a box is 'x y z length width height yaw class'") from error
        names.append(words[7])
    boxes = np.array(rows, np.float64).reshape(-1, 7)
    if wrong := box_problems(boxes, names):
        raise InputError(f"{path}: {wrong}")
    boxes[:, 6] = wrap(boxes[:, 6])
    return boxes.astype(np.float32), names


def write_frame(root: str | Path, name: str, cloud: PointCloud, boxes: np.ndarray, labels: Sequence[str], *, suffix: str = ".bin") -> None:
    """Writes one frame into a folder of the package's layout: points/NAME and labels/NAME.txt.

    Class names with spaces are refused, since lines are split at them.
    """
    root = Path(root)
    if any(len(label.split()) != 1 for label in labels):
        raise InputError(f"{root}: class names must be single words; got {', '.join(map(repr, labels))}")
    if wrong := box_problems(boxes, labels):
        raise InputError(f"{root}: frame {name}: {wrong}")
    lines = [" ".join([*(f"{value:.9g}" for value in box[:7]), label]) for box, label in zip(boxes, labels, strict=True)]
    write_cloud(root / "points" / f"{name}{suffix}", cloud)
    write_text(root / "labels" / f"{name}.txt", "".join(line + "\n" for line in lines))


def write_split(root: str | Path, split: str, names: Sequence[str]) -> None:
    """Writes ImageSets/SPLIT.txt."""
    write_text(Path(root) / "ImageSets" / f"{split}.txt", "".join(f"{name}\n" for name in names))


def check_dataset(data: DetectionData, *, most: int | None = None) -> None:
    """Reads the points of every frame (or of `most`, evenly spread) and checks that they are sweeps in metres that fit their labels.

    Raises:
        InputError: with a line for each frame that is wrong.
    """
    count = len(data) if most is None else min(most, len(data))
    chosen = [data.frames[i] for i in np.linspace(0, len(data) - 1, count).round().astype(int)]

    def check(frame: Frame) -> Frame:
        check_labels_fit(frame, frame.read())
        return frame

    problems = Problems()
    for frame in chosen:
        problems.run(check, frame)
    problems.raise_if_any(Path(f"{len(chosen)} frames"))


def _stem(path: Path) -> str:
    return path.name[: -len(".pcd.bin")] if path.name.lower().endswith(".pcd.bin") else path.stem
