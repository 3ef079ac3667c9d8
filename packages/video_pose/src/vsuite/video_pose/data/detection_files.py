"""What the readers of 2D poses have in common: what they give, joints' orders, and frames' numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.video_pose.skeletons import SKELETONS, Skeleton, skeleton

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Found:
    """A person in a frame.

    Attributes:
        frame: from 0. track: the person's number through the video, or None where the file has none.
        points: J, 2, pixels. scores: J; a joint with 0 or less is missing, as is one with NaN.
    """

    frame: int
    track: int | None
    points: Array
    scores: Array

    def visible(self) -> Array:
        """The points, NaN where a joint is missing."""
        missing = ~(self.scores > 0) | ~np.isfinite(self.points).all(axis=1)
        return np.where(missing[:, None], np.float32(np.nan), self.points)


@dataclass(frozen=True)
class Detections:
    """The people in a video, by frames.

    Attributes:
        name: of the video. layout: the joints' order.
        num_frames: T, those without people included.
        size: width and height of the picture, pixels, or None. fps: frames a second, or None.
        start: what the file calls the first frame; people's frames are counted from it.
    """

    name: str
    layout: Skeleton
    people: list[Found]
    num_frames: int
    size: tuple[int, int] | None = None
    fps: float | None = None
    start: int = 0


class UnknownLayout(InputError):
    """A file does not say in which order its joints are, and nobody else does."""


def layout_of(path: Path, implied: str | None, given: str | None, count: int | None = None) -> Skeleton:
    """The joints' order, from what the file says and what the user says.

    Raises:
        InputError: where neither says it, where they differ, and where the number of joints is another.
    """
    if implied is not None and given is not None and implied != given:
        skeleton(given)  # an unknown name is the plainer mistake
        raise InputError(f"{path}: its joints are in the layout {implied}, and {given} was asked for; leave the layout out")
    name = implied or given
    if name is None:
        fitting = [known for known, layout in SKELETONS.items() if count in (None, layout.num_joints)]
        if not fitting:
            raise InputError(f"{path}: {count} joints fit no known layout; there is {_known()}")
        raise UnknownLayout(f"{path}: does not say in which order its joints are; name the layout (--layout): {', '.join(fitting)}")
    found = skeleton(name)
    if count is not None:
        check_layout(path, found, count)
    return found


def check_layout(path: Path, layout: Skeleton, count: int) -> None:
    """Raises `InputError` for another number of joints than the layout has."""
    if count != layout.num_joints:
        raise InputError(f"{path}: a pose has {count} joints, and the layout {layout.name} {layout.num_joints}; there is {_known()}")


def _known() -> str:
    return ", ".join(f"{name} ({layout.num_joints})" for name, layout in SKELETONS.items())


def as_json(path: Path) -> Any:
    """The content of a JSON file; raises `InputError` for what is none."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is no JSON: {' '.join(str(error).split())[:200]}") from error


def read_json(path: Path, person: Any, key: str, scores_key: str | None = None) -> tuple[Array, Array]:
    """Points (J, 2) and scores (J) of a person: x, y and score one after the other, or pairs and a list of scores beside them."""
    value = person.get(key) if isinstance(person, Mapping) else None
    scores = person.get(scores_key) if scores_key and isinstance(person, Mapping) else None
    try:
        flat = np.array(value, np.float32).reshape(-1)
        if scores is None and scores_key is None:
            table = flat.reshape(-1, 3)
            return table[:, :2], table[:, 2]
        points = flat.reshape(-1, 2)
        found = np.ones(len(points), np.float32) if scores is None else np.array(scores, np.float32).reshape(len(points))
    except (TypeError, ValueError, OverflowError) as error:
        shape = "x, y, score of each joint" if scores_key is None else f"x, y of each joint, and as many {scores_key}"
        raise InputError(f"{path}: {key} of a person must be numbers, {shape}") from error
    return points, found


def split_numbers(name: str) -> list[Any]:
    """A key that sorts "2.jpg" before "10.jpg"."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]


def frame_number(name: Any, path: Path) -> int:
    """A frame's number: a whole one, or the last in a name such as "video_000012.jpg"; raises `InputError` where there is none."""
    if isinstance(name, int | float) and not isinstance(name, bool) and name == name // 1:
        return int(name)
    if not isinstance(name, str):
        raise InputError(f"{path}: {name!r} is no frame's number")
    numbers = re.findall(r"\d+", Path(name).stem if Path(name).suffix.lower() in (".jpg", ".png", ".jpeg", ".bmp") else name)
    if not numbers:
        raise InputError(f"{path}: {name!r} has no frame's number in it")
    return int(numbers[-1])


def in_order(path: Path, people: list[Found], numbers: Sequence[int], sort: bool) -> tuple[list[Found], list[int]]:
    """People and frames' numbers in order; raises `InputError` where they are not and are not to be sorted."""
    wrong = next((i for i in range(1, len(numbers)) if numbers[i] < numbers[i - 1]), None)
    if wrong is None:
        return people, list(numbers)
    if not sort:
        before, after = numbers[wrong - 1], numbers[wrong]
        raise InputError(f"{path}: frames are not in order: {after} comes after {before}; --sort puts them in order by their numbers")
    return sorted(people, key=lambda person: person.frame), sorted(numbers)


def video_of(path: Path, layout: Skeleton, people: list[Found], numbers: Sequence[int], *, sort: bool = False) -> Detections:
    """A video from the frames that a file numbers, counted from the first of them.

    Args:
        numbers: of all frames that the file has, with people or without.

    Raises:
        InputError: for frames out of order, numbers far apart, and a person with another number of joints than the layout.
    """
    for person in people:
        check_layout(path, layout, len(person.points))
    people, numbers = in_order(path, people, numbers, sort)
    first, last = (numbers[0], numbers[-1]) if numbers else (0, -1)
    if last - first + 1 > 100 * max(1, len(set(numbers))):
        raise InputError(f"{path}: the frames' numbers go from {first} to {last}, but there are {len(set(numbers))}: they number no video")
    shifted = [Found(person.frame - first, person.track, person.points, person.scores) for person in people]
    return Detections(path.stem, layout, shifted, last - first + 1, start=first)
