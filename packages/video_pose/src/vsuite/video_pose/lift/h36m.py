"""Human3.6M in the layout of VideoPose3D: `data_3d_h36m.npz`, `data_2d_h36m_*.npz`, and the cameras of one's own copy."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.video_pose.cameras import Camera, normalize_screen
from vsuite.video_pose.data.objects import read_objects
from vsuite.video_pose.lift.videos import Poses, Video, relative_to_root
from vsuite.video_pose.skeletons import H36M17

POSITIONS = "data_3d_h36m.npz"
FPS = 50.0
# Of the 32 joints of the recording those of the layout h36m17.
JOINTS = [0, 1, 2, 3, 6, 7, 8, 12, 13, 14, 15, 17, 18, 19, 25, 26, 27]
CAMERAS = ("h36m_cameras.json", "cameras.json", "h36m_dataset.py")


def read_cameras(folder: str | Path) -> dict[str, list[Camera]]:
    """The cameras of each subject, in the order of the 2D poses.

    They come from `h36m_cameras.json` (or `cameras.json`) with "intrinsics", a list, and "extrinsics", subject -> list, in the names of
    VideoPose3D (center, focal_length, radial_distortion, tangential_distortion, res_w, res_h; orientation as a quaternion and
    translation in millimetres), or straight from the two tables in VideoPose3D's own `h36m_dataset.py`, which is not run.

    Raises:
        InputError: where there is none of these files, and for what is wrong in one.
    """
    path = next((Path(folder) / name for name in CAMERAS if (Path(folder) / name).is_file()), None)
    if path is None:
        raise InputError(f"{folder}: has no calibration of the cameras; copy VideoPose3D's common/h36m_dataset.py there, or a cameras.json")
    try:
        tables = _literals(path) if path.suffix == ".py" else json.loads(path.read_text(encoding="utf-8"))
        intrinsics, extrinsics = tables["intrinsics"], tables["extrinsics"]
        return {
            subject: [_camera(inner, outer) for inner, outer in zip(intrinsics, cameras, strict=True) if outer]
            for subject, cameras in extrinsics.items()
        }
    except (KeyError, TypeError, ValueError, SyntaxError, UnicodeDecodeError, AttributeError) as error:
        raise InputError(f"{path}: is no calibration of Human3.6M: {' '.join(str(error).split())}") from error


def _literals(path: Path) -> dict[str, Any]:
    """The two tables of `h36m_dataset.py`, as data."""
    found = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and "_cameras_" in node.targets[0].id:
            found["intrinsics" if "intrinsic" in node.targets[0].id else "extrinsics"] = ast.literal_eval(node.value)
    return found


def _camera(inner: Mapping[str, Any], outer: Mapping[str, Any]) -> Camera:
    return Camera(
        orientation=tuple(outer["orientation"]),
        translation=tuple(value / 1000 for value in outer["translation"]),
        focal_length=tuple(inner["focal_length"]),
        center=tuple(inner["center"]),
        width=inner["res_w"],
        height=inner["res_h"],
        radial_distortion=tuple(inner["radial_distortion"]),
        tangential_distortion=tuple(inner["tangential_distortion"]),
    )


def read_h36m(folder: str | Path, detections: str, subjects: Sequence[str]) -> list[Video]:
    """Every video of the subjects, with 2D poses of a detector (or "gt") and 3D poses in the camera's space.

    Raises:
        InputError: for missing files and subjects, 2D poses in another layout than h36m17, and videos that do not fit.
    """
    folder = Path(folder)
    path_2d = folder / f"data_2d_h36m_{detections}.npz"
    if not path_2d.is_file():
        known = [file.stem.removeprefix("data_2d_h36m_") for file in folder.glob("data_2d_h36m_*.npz")]
        raise unknown("2D poses (lift.detections)", detections, known)
    positions, seen = read_objects(folder / POSITIONS).get("positions_3d"), read_objects(path_2d)
    keypoints, metadata = seen.get("positions_2d"), seen.get("metadata")
    if not isinstance(positions, Mapping) or not isinstance(keypoints, Mapping) or not isinstance(metadata, Mapping):
        raise InputError(f"{folder}: holds no positions_3d, or no positions_2d with metadata")
    if metadata.get("num_joints") != H36M17.num_joints or metadata.get("layout_name") != "h36m":
        raise InputError(f"{path_2d}: is in the layout {metadata.get('layout_name')} and not in h36m, which the 3D poses are in")
    cameras = read_cameras(folder)
    for subject in subjects:
        for where, table in ((POSITIONS, positions), (path_2d.name, keypoints), ("the calibration", cameras)):
            if subject not in table:
                raise InputError(f"{folder}: {where} lacks the subject {subject}; it has {', '.join(map(str, table))}")
    return [video for subject in subjects for video in _videos_of(subject, positions[subject], keypoints[subject], cameras[subject])]


def _videos_of(subject: str, positions: Mapping[str, Any], keypoints: Mapping[str, Any], cameras: Sequence[Camera]) -> list[Video]:
    found = []
    for action, recorded in positions.items():
        views = keypoints.get(action)
        if views is None or len(views) < len(cameras):
            raise InputError(f"{subject} {action}: {len(views or ())} videos with 2D poses for {len(cameras)} cameras")
        world = np.asarray(recorded, np.float32)[:, JOINTS] if np.shape(recorded)[1] == 32 else np.asarray(recorded, np.float32)
        H36M17.check(world)
        for number, camera in enumerate(cameras):
            poses_2d = np.asarray(views[number], np.float32)[: len(world), :, :2]  # videos go on after the recording has ended
            if len(poses_2d) < len(world):
                raise InputError(f"{subject} {action}: camera {number} has {len(poses_2d)} frames of 2D poses, and {len(world)} of 3D ones")
            truth: Poses = relative_to_root(camera.from_world(world), H36M17).astype(np.float32)
            screen = normalize_screen(poses_2d, camera.width, camera.height)
            found.append(Video(f"{action} {subject}.{number}", screen, truth, FPS, camera.width))
    return found
