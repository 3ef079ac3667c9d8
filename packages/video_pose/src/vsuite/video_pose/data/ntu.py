"""NTU RGB+D's `.skeleton` files: reading, the cleaning that pyskl applies, names, and the published splits."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

NUM_JOINTS = 25
SHORTEST = 11  # a body is kept when it has more frames
WIDEST = 0.8  # width over height of a body that is upright enough
MOST_WIDE = 0.69754  # share of wider frames from which on a body is taken for furniture
EMPTY = 1e-3
NAME = re.compile(r"S(\d{3})C(\d{3})P(\d{3})R(\d{3})A(\d{3})")

Split = Literal["xsub60", "xview", "xsub120", "xset"]
SUBJECTS_60 = frozenset((1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38))
SUBJECTS_120 = SUBJECTS_60 | frozenset(
    (45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89, 91, 92, 93, 94, 95, 97, 98, 100, 103)
)


@dataclass(frozen=True)
class SampleName:
    """What the name of a sample says; all count from 1."""

    setup: int
    camera: int
    performer: int
    repetition: int
    action: int

    @property
    def label(self) -> int:
        """The class, from 0."""
        return self.action - 1

    def trains(self, split: Split) -> bool:
        """Whether the sample is for training in a published split; it is for testing otherwise."""
        rules = {
            "xsub60": self.performer in SUBJECTS_60,
            "xview": self.camera in (2, 3),
            "xsub120": self.performer in SUBJECTS_120,
            "xset": self.setup % 2 == 0,
        }
        if split not in rules:
            raise InputError(f"unknown split {split!r}; there is {', '.join(rules)}")
        return rules[split]


def parse_name(name: str | Path) -> SampleName:
    """The facts in a name such as S001C002P003R002A013.skeleton."""
    found = NAME.match(Path(name).name)
    if not found:
        raise InputError(f"{name}: a sample of NTU RGB+D is named SsssCcccPpppRrrrAaaa")
    return SampleName(*map(int, found.groups()))


@dataclass(frozen=True)
class Body:
    """One tracked body.

    Attributes:
        name: the id in the file.
        frames: T numbers, rising, counted over the frames in which there is anyone. Sensors lose bodies for a while.
        joints: T, 25, 3 in metres, in the camera's space.
    """

    name: str
    frames: NDArray[np.int64]
    joints: NDArray[np.float32]

    @property
    def motion(self) -> float:
        """The sum of the variances of x, y and z over all joints and frames, in square metres."""
        return float(self.joints.reshape(-1, 3).astype(np.float64).var(0).sum())

    @property
    def share_wide(self) -> float:
        """The share of frames in which the body is wider than 0.8 of its height."""
        width, height = np.ptp(self.joints[..., 0], axis=1), np.ptp(self.joints[..., 1], axis=1)
        return float((width > WIDEST * height).mean())


def read_bodies(path: str | Path) -> tuple[list[Body], int]:
    """All bodies of a file in order of appearance, and the number of frames in which there is anyone.

    Raises:
        InputError: for a missing file, one that breaks off, and values that are no numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    lines = enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
    found: dict[str, dict[int, NDArray]] = {}
    frame = 0
    for _ in range(_whole(path, lines)):
        bodies = _whole(path, lines)
        for _ in range(bodies):
            name, *_ = _words(path, lines)
            found.setdefault(name, {})[frame] = _joints(path, lines)
        frame += bodies > 0
    if not found:
        raise InputError(f"{path}: has no body in any frame")
    return [Body(name, np.array(list(joints)), np.stack(list(joints.values()))) for name, joints in found.items()], frame


def read_skeleton(path: str | Path) -> NDArray[np.float16]:
    """The one or two people of a file, cleaned as pyskl does it.

    Bodies of 11 frames or fewer, and those that are too wide in most frames (sensors take chairs for people), are dropped.
    The others, those that move most first, go into the first of two tracks in which their frames are free. Frames in which
    no one is are cut off at both ends.

    Returns:
        M, T, 25, 3 in metres (M 1 or 2); zeros where a person is missing. Half precision, as published files are.

    Raises:
        InputError: as `read_bodies`, and if no body is left.
    """
    bodies, length = read_bodies(path)
    bodies = [body for body in bodies if len(body.frames) > SHORTEST and body.share_wide <= MOST_WIDE]
    if not bodies:
        raise InputError(f"{path}: no body has more than {SHORTEST} frames and is upright in enough of them")
    tracks = np.zeros((2, length, NUM_JOINTS, 3), np.float32)
    taken: list[list[tuple[int, int]]] = [[], []]
    for body in sorted(bodies, key=lambda body: -body.motion):
        first, last = int(body.frames[0]), int(body.frames[-1])
        for track, ranges in zip(tracks, taken, strict=True):
            if all(last < start or first > end for start, end in ranges):
                track[body.frames] = body.joints
                ranges.append((first, last))
                break
    there = np.abs(tracks.sum((0, 2, 3))) >= EMPTY
    tracks = tracks[:, there.argmax() : length - there[::-1].argmax()]
    if abs(tracks[0, 0].sum()) < EMPTY:
        tracks = tracks[::-1]
    return (tracks if tracks[1].any() else tracks[:1]).astype(np.float16)


def _words(path: Path, lines: Iterator[tuple[int, str]]) -> list[str]:
    """The words of the next line, one at least."""
    words = next(lines, (0, ""))[1].split()
    if not words:
        raise InputError(f"{path}: breaks off, or has an empty line where a body or joint should be")
    return words


def _whole(path: Path, lines: Iterator[tuple[int, str]]) -> int:
    number, text = next(lines, (0, ""))
    if not number:
        raise InputError(f"{path}: breaks off")
    if not text.strip().isdecimal():
        raise InputError(f"{path}: line {number}: must be a whole number; got {text[:40]!r}")
    return int(text)


def _joints(path: Path, lines: Iterator[tuple[int, str]]) -> NDArray[np.float32]:
    """25, 3: the first three of the twelve numbers of each joint."""
    count = _whole(path, lines)
    if count != NUM_JOINTS:
        raise InputError(f"{path}: a body must have {NUM_JOINTS} joints; got {count}")
    try:
        joints = np.array([_words(path, lines)[:3] for _ in range(count)], np.float32)
    except ValueError as error:
        raise InputError(f"{path}: a joint must be numbers, x y z first: {error}") from error
    if joints.shape != (NUM_JOINTS, 3) or not np.isfinite(joints).all():
        raise InputError(f"{path}: a joint must be three finite numbers and more")
    return joints
