"""Films written frame by frame: MP4 by ffmpeg or opencv, GIF by Pillow."""

from __future__ import annotations

import contextlib
import importlib.util
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path

Frame = NDArray[np.uint8]
Write = Callable[[Frame], object]
Progress = Callable[[int, int], None]
"""Told how many frames are done, and how many there are."""

GIF_RATE = 25  # frames a second at the most; browsers slow down those that ask for more


def quiet(done: int, total: int) -> None:
    """A progress that says nothing."""


@contextlib.contextmanager
def film_writer(path: str | Path, fps: float, size: tuple[int, int]) -> Iterator[Write]:
    """Gives a function that adds a frame (height, width, 3), uint8, RGB; the film appears, whole, when the block ends.

    Args:
        path: ends in .mp4 (H.264 where imageio-ffmpeg is installed, else opencv's MPEG-4) or .gif.
        fps: frames a second. A GIF keeps every second, third, ... of them where they are more than `GIF_RATE`.
        size: width and height; both even for .mp4.

    Raises:
        InputError: for another ending, a rate that is not positive, and where the film cannot be written.
    """
    path = check_film(path, fps)
    with atomic_path(path) as temporary:
        opened = _gif if path.suffix.lower() == ".gif" else _ffmpeg if importlib.util.find_spec("imageio_ffmpeg") else _opencv
        with opened(temporary, fps, size) as write:
            yield write
        if temporary.stat().st_size == 0:
            raise InputError(f"{path}: cannot be written as a film on this machine; .gif always can")


def check_film(path: str | Path, fps: float) -> Path:
    """The path; raises `InputError` for an ending or a rate that no film has."""
    path = Path(path)
    if path.suffix.lower() not in (".mp4", ".gif"):
        raise InputError(f"{path}: a film's name ends in .mp4 or .gif")
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise InputError(f"a film's rate is in (0, 1000] frames a second; got {fps}")
    return path


@contextlib.contextmanager
def _ffmpeg(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Write]:
    import imageio_ffmpeg

    options: dict[str, Any] = {"codec": "libx264", "quality": None, "output_params": ["-crf", "20", "-movflags", "+faststart"]}
    film = imageio_ffmpeg.write_frames(str(path), size, fps=fps, macro_block_size=2, ffmpeg_log_level="error", **options)
    film.send(None)
    try:
        yield lambda frame: film.send(np.ascontiguousarray(frame))
    finally:
        film.close()


@contextlib.contextmanager
def _opencv(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Write]:
    import cv2

    film = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    try:
        yield lambda frame: film.write(np.ascontiguousarray(frame[..., ::-1]))
    finally:
        film.release()


@contextlib.contextmanager
def _gif(path: Path, fps: float, size: tuple[int, int]) -> Iterator[Write]:
    """Each frame is written as soon as it comes, cut to what has changed: `Image.save` would keep all of them in memory."""
    from PIL import GifImagePlugin, Image, ImageChops

    every = math.ceil(fps / GIF_RATE - 1e-9)
    count, last, palette = 0, None, None
    with path.open("wb") as file:

        def write(frame: Frame) -> None:
            nonlocal count, last, palette
            count += 1
            if (count - 1) % every:
                return
            picture = Image.fromarray(frame)
            if palette is None:
                palette = _palette(picture)
            indexed = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
            number = (count - 1) // every
            # Centiseconds are all that a GIF knows: rounding the ends, not the lengths, keeps the pace.
            begin, end = (round(100 * step * every / fps) for step in (number, number + 1))
            box = (0, 0, *size)
            if last is None:
                file.writelines(GifImagePlugin.getheader(indexed, info={"loop": 0, "optimize": False})[0])
            else:
                box = ImageChops.difference(indexed.convert("RGB"), last.convert("RGB")).getbbox() or (0, 0, 1, 1)
            file.writelines(GifImagePlugin.getdata(indexed.crop(box), box[:2], duration=10 * (end - begin)))
            last = indexed

        yield write
        if last is not None:
            file.write(b";")


def _palette(first: Any) -> Any:
    """Colours for all frames: the commonest of the first one, and a cube of others for what comes later."""
    from PIL import Image

    levels = np.linspace(0, 255, 5).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1).reshape(-1)
    common = (first.quantize(128, dither=Image.Dither.NONE).getpalette() or [])[: 128 * 3]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*common, *cube.tolist()])
    return palette
