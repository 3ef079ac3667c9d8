"""Frames of videos, one after the other, by opencv: files that it decodes, and folders of pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

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
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    # What FFmpeg would print of a broken file says no more than the error does; another setting by the user stays.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    capture = cv2.VideoCapture(str(path))
    try:
        count = 0
        while True:
            good, frame = capture.read()
            if not good:
                break
            count += 1
            yield np.asarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), np.uint8)
        if not count:
            raise InputError(f"{path}: does not decode as a video")
    finally:
        capture.release()


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


def frame_rate(path: str | Path, otherwise: float = 25.0) -> float:
    """Frames a second of a video file, as it says; `otherwise` where it does not, and for folders."""
    import cv2

    if not Path(path).is_file():
        return otherwise
    capture = cv2.VideoCapture(str(path))
    try:
        rate = float(capture.get(cv2.CAP_PROP_FPS))
    finally:
        capture.release()
    return rate if 0 < rate <= 1000 else otherwise
