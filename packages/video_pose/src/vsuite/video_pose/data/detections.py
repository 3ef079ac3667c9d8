"""2D poses of people in videos, from the files that pose estimators write.

What is read: OpenPose (a folder of JSON files, one a frame; BODY_25 and COCO), MMPose's predictions, COCO results as Detectron2
and others write them, AlphaPose (COCO-17 and Halpe), VideoPose3D's `.npz` and those of its Detectron2 script, and arrays of one's own
(`.npy`, `.npz`, `.csv`). Most say in which order their joints are; where one does not, it must be named: 17 joints may be COCO's or
Human3.6M's, and a pose read in the wrong order looks like no error at all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.batch import find_files
from vsuite.core.errors import InputError
from vsuite.video_pose.data import detection_arrays
from vsuite.video_pose.data.detection_files import (
    Detections,
    Found,
    as_json,
    frame_number,
    layout_of,
    read_json,
    split_numbers,
    video_of,
)

SUFFIXES = (".json", ".npz", ".npy", ".csv")
# OpenPose's models by the numbers of a person: x, y and confidence of each joint.
OPENPOSE = {25: "body25", 18: "openpose18"}
# COCO results and AlphaPose: by the joints of a person. Whole bodies begin with the body.
RESULTS = {17: "coco17", 26: "halpe26", 133: "coco17", 136: "halpe26"}
MMPOSE = {"coco": "coco17", "coco_wholebody": "coco17", "h36m": "h36m17", "halpe26": "halpe26", "halpe": "halpe26"}


def read_detections(path: str | Path, *, layout: str | None = None, sort: bool = False) -> list[Detections]:
    """The people in a file or in a folder of OpenPose's: one entry a video, which is one for all formats but VideoPose3D's.

    Args:
        layout: name of the joints' order, where the file does not say; where it does, both must agree.
        sort: put frames in order that are not, in place of refusing them.

    Raises:
        InputError: for files of no known form, unknown, missing or wrong layouts, a wrong number of joints, frames out of order, fewer
            than two frames, and videos without anybody.
    """
    path = Path(path)
    if path.is_dir():
        found = [_read_openpose(path, layout)]
    elif path.suffix == ".json":
        found = [_read_json(path, layout, sort)]
    elif path.suffix in (".npz", ".npy", ".csv"):
        found = detection_arrays.read_arrays(path, layout, sort)
    else:
        raise InputError(f"{path}: 2D poses are read from {', '.join(SUFFIXES)} and from folders of OpenPose's JSON files")
    for video in found:
        if not video.people:
            raise InputError(f"{path}: nobody is in {video.name}")
        if video.num_frames < 2:
            raise InputError(f"{path}: {video.name} has one frame; a video of 2 or more is needed")
    return found


def find_detections(inputs: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """The files and OpenPose folders in files, folders and patterns; see `vsuite.core.batch.find_files`."""

    def usable(path: Path) -> bool:
        return path.suffix in SUFFIXES or is_openpose(path)

    def inside(folder: Path) -> list[Path]:
        return [folder] if is_openpose(folder) else [path for path in sorted(folder.iterdir()) if usable(path)]

    return find_files(inputs, inside, usable, "2D poses")


def is_openpose(path: Path) -> bool:
    """Whether it is a folder of OpenPose's JSON files."""
    return path.is_dir() and next(path.glob("*_keypoints.json"), None) is not None


def _read_openpose(folder: Path, layout: str | None) -> Detections:
    files = sorted(folder.glob("*_keypoints.json"), key=lambda file: split_numbers(file.name))
    if not files:
        raise InputError(f"{folder}: holds no file of OpenPose (NAME_000000000000_keypoints.json)")
    videos = sorted({re.sub(r"\d+$", "", file.name.removesuffix("_keypoints.json")) for file in files})
    if len(videos) > 1:
        raise InputError(f"{folder}: holds the frames of two videos, {videos[0]}... and {videos[1]}...; a folder each is needed")
    people, implied = [], None
    numbers = [frame_number(file.name.removesuffix("_keypoints.json"), file) for file in files]
    for frame, file in zip(numbers, files, strict=True):
        content = as_json(file)
        if not isinstance(content, dict) or not isinstance(content.get("people"), list):
            raise InputError(f"{file}: is no file of OpenPose: it has no list of people")
        for person in content["people"]:
            points, scores = read_json(file, person, "pose_keypoints_2d")
            name = OPENPOSE.get(len(points))
            if name is None or implied not in (None, name):
                raise InputError(f"{file}: {len(points)} joints; OpenPose's models have 25 (BODY_25) or 18 (COCO), the same in all files")
            implied = name
            identity = np.ravel(person.get("person_id", -1))
            track = int(identity[0]) if identity.size and identity[0] >= 0 else None
            people.append(Found(frame, track, points, scores))
    if implied is None:
        raise InputError(f"{folder}: nobody is seen in any of its {len(files)} files")
    return replace(video_of(folder, layout_of(folder, implied, layout), people, numbers), name=folder.name)


def _read_json(path: Path, layout: str | None, sort: bool) -> Detections:
    content = as_json(path)
    if isinstance(content, dict) and "pose_keypoints_2d" in str(content.get("people", ""))[:200]:
        raise InputError(f"{path}: is one frame of OpenPose; give the folder that it lies in")
    if isinstance(content, dict) and isinstance(content.get("instance_info"), list):
        meta = content.get("meta_info")
        name = str(meta.get("dataset_name", "")).lower() if isinstance(meta, Mapping) else ""
        return _read_mmpose(path, content["instance_info"], MMPOSE.get(name), layout, sort)
    if isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
        if "instances" in content[0]:
            return _read_mmpose(path, content, None, layout, sort)
        if "keypoints" in content[0] and "image_id" in content[0]:
            return _read_results(path, content, layout, sort)
    raise InputError(f"{path}: is no 2D poses: known are MMPose's predictions, COCO results, AlphaPose, and folders of OpenPose")


def _read_mmpose(path: Path, frames: list[Any], implied: str | None, layout: str | None, sort: bool) -> Detections:
    """Frames with their instances: keypoints [[x, y], ...] and keypoint_scores."""
    people, numbers = [], []
    for place, frame in enumerate(frames):
        instances = frame.get("instances") if isinstance(frame, Mapping) else None
        if not isinstance(instances, list):
            raise InputError(f"{path}: frame {place} has no list of instances")
        numbers.append(frame_number(frame.get("frame_id", place), path))
        for instance in instances:
            points, scores = read_json(path, instance, "keypoints", "keypoint_scores")
            if implied is not None and len(points) == 133:
                points, scores = points[:17], scores[:17]
            people.append(Found(numbers[-1], _track_of(instance), points, scores))
    skeleton = layout_of(path, implied, layout, len(people[0].points) if people else None)
    return video_of(path, skeleton, people, numbers, sort=sort)


def _read_results(path: Path, entries: list[Any], layout: str | None, sort: bool) -> Detections:
    """One entry a person: image_id, and keypoints x, y, score one after the other."""
    people, implied = [], None
    for entry in entries:
        points, scores = read_json(path, entry, "keypoints")
        name = RESULTS.get(len(points))
        if name is None or implied not in (None, name):
            raise InputError(f"{path}: a person has {len(points)} joints; known are {', '.join(map(str, RESULTS))}, the same for all")
        implied = name
        people.append(Found(frame_number(entry.get("image_id"), path), _track_of(entry), points, scores))
    skeleton = layout_of(path, implied, layout)
    people = [Found(p.frame, p.track, p.points[: skeleton.num_joints], p.scores[: skeleton.num_joints]) for p in people]
    return video_of(path, skeleton, people, [person.frame for person in people], sort=sort)


def _track_of(entry: Mapping[str, Any]) -> int | None:
    """The person's number, under the names that tools give it; a list (AlphaPose, after several matches) stands for its first."""
    for key in ("track_id", "idx", "instance_id", "person_id"):
        value = np.ravel(entry.get(key, ()))
        if value.size and isinstance(value[0], np.integer | np.floating) and math.isfinite(value[0]) and value[0] >= 0:
            return int(value[0])
    return None
