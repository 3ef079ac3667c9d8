"""Frames of videos, one after the other, by opencv: files that it decodes, and folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".gif")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")


def stream_frames(path: str | Path) -> Iterator[NDArray[np.uint8]]:
    """The frames of a video file, or of a folder of pictures in the order of their names: (height, width, 3), RGB, uint8.

    Raises:
        InputError: for what does not exist or does not decode, and for pictures of several sizes.
    """
    import cv2

    path = Path(path)
    if path.is_dir():
        yield from _pictures(path)
        return
    with opened(path) as capture:
        count = 0
        while (found := capture.read())[0]:
            count += 1
            yield np.asarray(cv2.cvtColor(found[1], cv2.COLOR_BGR2RGB), np.uint8)
    if not count:
        raise InputError(f"{path}: does not decode as a video")


@contextmanager
def opened(path: str | Path) -> Iterator[Any]:
    """An opencv capture of a video file whose first frame is still to come; raises `InputError` for what does not exist or decode."""
    import cv2

    if not Path(path).is_file():
        raise InputError(f"{path}: no such file")
    # What FFmpeg would print of a broken file says no more than the error does; another setting by the user stays.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    capture = cv2.VideoCapture(str(path))
    try:
        if not capture.isOpened():
            raise InputError(f"{path}: does not decode as a video")
        yield capture
    finally:
        capture.release()


def read_frames(path: str | Path, frames: Sequence[int] | NDArray[np.integer]) -> NDArray[np.uint8]:
    """Frames of a video in the order asked for, which may repeat: T, H, W, 3, RGB. Others are skipped without being converted.

    Raises:
        InputError: for a missing file, one that does not decode, and frames beyond its end.
    """
    import cv2

    wanted, found = set(map(int, frames)), {}
    with opened(path) as capture:
        for number in range(max(wanted) + 1):
            if not capture.grab():
                raise InputError(f"{path}: ends after {number} frames" if number else f"{path}: does not decode as a video")
            if number in wanted:
                good, picture = capture.retrieve()
                if not good:
                    raise InputError(f"{path}: frame {number} does not decode")
                found[number] = cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
    return np.stack([found[int(number)] for number in frames])


@dataclass(frozen=True)
class Facts:
    """Of a video file: frames (counted, as headers err), width and height in pixels, and frames a second where the file says."""

    num_frames: int
    size: tuple[int, int]
    fps: float | None


def video_facts(path: str | Path) -> Facts:
    """Runs through a video file without converting its frames; raises `InputError` for a missing file, and one that does not decode."""
    import cv2

    with opened(path) as capture:
        count = 0
        while capture.grab():
            count += 1
        if not count:
            raise InputError(f"{path}: does not decode as a video")
        size = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
        fps = float(capture.get(cv2.CAP_PROP_FPS))
    return Facts(count, size, fps if 0 < fps <= 1000 else None)


def _pictures(folder: Path) -> Iterator[NDArray[np.uint8]]:
    paths, shape = list_pictures(folder), None
    if not paths:
        raise InputError(f"{folder}: holds no pictures ({', '.join(PICTURE_SUFFIXES)})")
    for path in paths:
        picture = read_picture(path)
        shape = shape or picture.shape
        if picture.shape != shape:
            raise InputError(f"{path}: is {picture.shape[1]} x {picture.shape[0]}, and the frames before it {shape[1]} x {shape[0]}")
        yield picture


def list_pictures(folder: str | Path) -> list[Path]:
    """The pictures that lie in a folder, in the order of their names; frame_9 comes before frame_10."""
    found = [path for path in Path(folder).iterdir() if path.suffix.lower() in PICTURE_SUFFIXES and not path.name.startswith(".")]
    return sorted(found, key=lambda path: (len(path.stem), path.stem) if path.stem[-1:].isdigit() else (0, path.stem))


def read_picture(path: str | Path) -> NDArray[np.uint8]:
    """A picture, (height, width, 3), RGB; raises `InputError` where it does not decode."""
    import cv2

    data = np.fromfile(path, np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if picture is None:
        raise InputError(f"{path}: does not decode as a picture")
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), np.uint8)
