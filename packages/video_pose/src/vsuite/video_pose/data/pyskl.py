"""Skeletons of many videos with their labels: the pickles of pyskl and mmaction2, and safe files of our own.

A pickle is a program. These are read without running anything (`vsuite.core.unpickling`), and refused if they ask for more
than arrays and plain containers. `.npz` and `.json` hold the same and are never a program.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path, write_text

SUFFIXES = (".pkl", ".pickle", ".npz", ".json")
UNKNOWN = -1  # the label of a video whose action is not known


@dataclass(frozen=True)
class Annotation:
    """The people in one video.

    Attributes:
        name: of the video; what splits list.
        label: class from 0; -1 when unknown.
        keypoint: M, T, J, C with C 2 (pixels) or 3 (metres, or pixels and score), floating-point; zeros where a person is missing.
        score: M, T, J, or None where the file has none.
        image_shape: (height, width) in pixels, or None.
    """

    name: str
    label: int
    keypoint: NDArray[np.floating]
    score: NDArray[np.floating] | None = None
    image_shape: tuple[int, int] | None = None

    @property
    def num_frames(self) -> int:
        return self.keypoint.shape[1]


@dataclass(frozen=True)
class Annotations:
    """All videos of a file and, by name, its splits: lists of names of videos. An older form of the file has no splits."""

    videos: list[Annotation]
    splits: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def split(self, name: str) -> list[Annotation]:
        """The videos of a split, in the file's order; raises `InputError` that names the nearest for an unknown one."""
        if name not in self.splits:
            raise unknown("split", name, self.splits)
        wanted = set(self.splits[name])
        return [video for video in self.videos if video.name in wanted]

    def check_labels(self, num_classes: int) -> None:
        """Raises `InputError` unless every label is from 0 to `num_classes` - 1."""
        for video in self.videos:
            if not 0 <= video.label < num_classes:
                raise InputError(f"{video.name}: label must be from 0 to {num_classes - 1}; got {video.label}")


def read_annotations(path: str | Path, *, num_joints: int | None = None, num_classes: int | None = None) -> Annotations:
    """Reads a `.pkl` of pyskl or mmaction2 (both forms), or an `.npz` or `.json` of `write_annotations`.

    Args:
        num_joints: that every video must have; None: any, but the same in all.
        num_classes: that labels must lie in; None: any.

    Raises:
        InputError: for a file that cannot be read, a pickle that holds other objects than arrays and plain containers, and
            for the first annotation that is wrong, naming it and what is wrong.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise InputError(f"{path}: annotations end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    readers: dict[str, Callable[[Path], Any]] = {".npz": _read_npz, ".json": _read_json}
    content = readers.get(path.suffix, _read_pickle)(path)
    found = from_content(content, str(path), num_joints=num_joints)
    if num_classes is not None:
        try:
            found.check_labels(num_classes)
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return found


def from_content(content: Any, source: str = "annotations", *, num_joints: int | None = None) -> Annotations:
    """What is in a pickle of pyskl's, already read: {"split": {name: [ids]}, "annotations": [...]} or the bare list."""
    if isinstance(content, list):
        content = {"split": {}, "annotations": content}
    if not isinstance(content, dict) or not isinstance(content.get("annotations"), list):
        raise InputError(f"{source}: must be a list of annotations, or a dictionary of 'split' and 'annotations'")
    videos = []
    for number, entry in enumerate(content["annotations"]):
        video = _annotation(entry, f"{source}: annotation {number}")
        if num_joints is None:
            num_joints = video.keypoint.shape[2]
        if video.keypoint.shape[2] != num_joints:
            raise InputError(f"{source}: {video.name}: must have {num_joints} joints; got {video.keypoint.shape[2]}")
        videos.append(video)
    if not videos:
        raise InputError(f"{source}: holds no annotations")
    names = {video.name for video in videos}
    if len(names) < len(videos):
        raise InputError(f"{source}: {len(videos) - len(names)} names of videos occur more than once")
    return Annotations(videos, _splits(content.get("split", {}), names, source))


def _splits(splits: Any, names: set[str], source: str) -> dict[str, list[str]]:
    if not isinstance(splits, dict) or not all(isinstance(ids, list | tuple | np.ndarray) for ids in splits.values()):
        raise InputError(f"{source}: 'split' must be a dictionary of lists of names")
    checked = {str(name): [str(video) for video in ids] for name, ids in splits.items()}
    for name, ids in checked.items():
        absent = [video for video in ids if video not in names]
        if absent:
            raise InputError(f"{source}: the split {name!r} lists {len(absent)} videos that are not there, such as {absent[0]!r}")
    return checked


def _annotation(entry: Any, where: str) -> Annotation:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: must be a dictionary; got {type(entry).__name__}")
    name = entry.get("frame_dir", entry.get("filename"))
    if not isinstance(name, str):
        raise InputError(f"{where}: needs a text as 'frame_dir' (or 'filename')")
    where = f"{where} ({name})"
    if "keypoint" not in entry:
        compressed = " (a compressed form, as of Kinetics: its skeletons are in the raw file it names)" if "raw_file" in entry else ""
        raise InputError(f"{where}: has no 'keypoint'{compressed}")
    keypoint = _array(entry["keypoint"], f"{where}: 'keypoint'")
    if keypoint.ndim != 4 or keypoint.shape[-1] not in (2, 3) or 0 in keypoint.shape[1:]:
        raise InputError(f"{where}: 'keypoint' must be people, frames, joints, 2 or 3; got {keypoint.shape}")
    frames = entry.get("total_frames", keypoint.shape[1])
    if frames != keypoint.shape[1]:
        raise InputError(f"{where}: 'total_frames' is {frames}, but 'keypoint' has {keypoint.shape[1]} frames")
    score = None if entry.get("keypoint_score") is None else _array(entry["keypoint_score"], f"{where}: 'keypoint_score'")
    if score is not None and score.shape != keypoint.shape[:-1]:
        raise InputError(f"{where}: 'keypoint_score' must be {keypoint.shape[:-1]}; got {score.shape}")
    finite = np.isfinite(keypoint).all(-1)
    if finite.size and not finite.any():
        raise InputError(f"{where}: 'keypoint' is NaN everywhere")
    keypoint = np.where(finite[..., None], keypoint, 0).astype(keypoint.dtype)
    score = None if score is None else np.where(finite & np.isfinite(score), score, 0).astype(score.dtype)
    return Annotation(name, _label(entry.get("label", UNKNOWN), where), keypoint, score, _image_shape(entry.get("img_shape"), where))


def _array(value: Any, what: str) -> NDArray[np.floating]:
    if isinstance(value, list):
        try:
            value = np.array(value, np.float32)
        except (ValueError, TypeError) as error:
            raise InputError(f"{what} must be an array of numbers: {error}") from error
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiu":
        raise InputError(f"{what} must be an array of numbers; got {getattr(value, 'dtype', type(value).__name__)}")
    return value if value.dtype.kind == "f" else value.astype(np.float32)


def _label(value: Any, where: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < UNKNOWN:
        raise InputError(f"{where}: 'label' must be a whole number from 0, or -1 when unknown; got {value!r}")
    return int(value)


def _image_shape(value: Any, where: str) -> tuple[int, int] | None:
    if value is None:
        return None
    if (
        not isinstance(value, list | tuple | np.ndarray)
        or len(value) != 2
        or not all(isinstance(x, int | np.integer) and x > 0 for x in value)
    ):
        raise InputError(f"{where}: 'img_shape' must be (height, width) in pixels; got {value!r}")
    return int(value[0]), int(value[1])


# --- files ---


def _read_pickle(path: Path) -> Any:
    from vsuite.core.unpickling import read_restricted

    content = read_restricted(path)
    _refuse_objects(content, path)
    return content


def _refuse_objects(content: Any, path: Path) -> None:
    """Raises for anything but arrays of numbers or texts, plain containers, texts and numbers; not recursive, so of any depth."""
    waiting, seen = [content], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, str | bytes | int | float | None | np.number | np.bool_ | np.str_):
            continue
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, np.ndarray):
            waiting.extend(value.flat if value.dtype == object else ())
        elif isinstance(value, dict):
            waiting.extend((*value.keys(), *value.values()))
        elif isinstance(value, list | tuple | set | frozenset):
            waiting.extend(value)
        else:
            what = getattr(value, "name", None) or type(value).__name__
            raise InputError(f"{path}: asks for {what}; annotations hold arrays and plain containers alone, nothing was run")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON: {error}") from error


def _read_npz(path: Path) -> Any:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        shapes, splits = arrays["shapes"], json.loads(str(arrays["splits"]))
        keypoints, scores = (np.split(arrays[name], np.cumsum(sizes)[:-1]) for name, sizes in _sizes(shapes, arrays["has_score"]).items())
        entries = zip(arrays["names"], arrays["labels"], shapes, arrays["image_shapes"], keypoints, scores, strict=True)
        annotations = [
            {
                "frame_dir": str(name),
                "label": int(label),
                "keypoint": keypoint.reshape(shape),
                "keypoint_score": score.reshape(shape[:-1]) if score.size else None,
                "img_shape": tuple(image) if image.any() else None,
            }
            for name, label, shape, image, keypoint, score in entries
        ]
    except Exception as error:  # zip, numpy and JSON each have errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: is no file of annotations: {reason}") from error
    return {"split": splits, "annotations": annotations}


def _sizes(shapes: NDArray, has_score: NDArray) -> dict[str, NDArray]:
    return {"keypoints": shapes.prod(1), "scores": shapes[:, :-1].prod(1) * has_score}


def write_annotations(annotations: Annotations, path: str | Path) -> None:
    """Writes `.npz` (compact, precision kept) or `.json` (readable); both are read by `read_annotations`, neither can run code.

    In the `.npz` all videos lie one after the other: `keypoints` and `scores` flat, `shapes` (N, 4: M, T, J, C), `names`,
    `labels`, `image_shapes` (N, 2; zeros when unknown), `has_score`, and `splits` as JSON.
    """
    path, videos = Path(path), annotations.videos
    splits = {name: list(ids) for name, ids in annotations.splits.items()}
    if path.suffix == ".json":
        write_text(path, json.dumps({"split": splits, "annotations": [_entry(video) for video in videos]}))
        return
    if path.suffix != ".npz":
        raise InputError(f"{path}: annotations are written as .npz or .json")
    with atomic_path(path) as temporary:
        np.savez_compressed(
            temporary,
            names=np.array([video.name for video in videos]),
            labels=np.array([video.label for video in videos], np.int64),
            shapes=np.array([video.keypoint.shape for video in videos], np.int64).reshape(-1, 4),
            image_shapes=np.array([video.image_shape or (0, 0) for video in videos], np.int64).reshape(-1, 2),
            has_score=np.array([video.score is not None for video in videos]),
            keypoints=_flat(video.keypoint for video in videos),
            scores=_flat(np.empty(0, np.float16) if video.score is None else video.score for video in videos),
            splits=np.array(json.dumps(splits)),
        )


def _flat(arrays: Iterable[NDArray]) -> NDArray:
    return np.concatenate([array.ravel() for array in arrays])


def _entry(video: Annotation) -> dict[str, Any]:
    entry: dict[str, Any] = {"frame_dir": video.name, "label": video.label, "total_frames": video.num_frames}
    if video.image_shape is not None:
        entry["img_shape"] = list(video.image_shape)
    entry["keypoint"] = video.keypoint.tolist()
    if video.score is not None:
        entry["keypoint_score"] = video.score.tolist()
    return entry
