"""Clips to learn from and to judge by: what was observed, and what came next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.video_pose.data.moving_mnist import SIDE, make_clip
from vsuite.video_pose.data.videos import list_pictures, read_picture, stream_frames
from vsuite.video_pose.forecast.settings import Colours

Clip = NDArray[np.float32]
VALIDATION_SEED, TEST_SEED = 20_000, 30_000  # of clips that are the same every time


class Clips(Protocol):
    """Clips by number. Each is (2 T, C, H, W), float32: T observed frames and the T that follow, as the network reads them."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __len__(self) -> int: ...

    def clip(self, index: int, rng: np.random.Generator | None) -> Clip:
        """One clip; `rng` is for clips that are made anew each time, None asks for what is always the same."""
        ...


class MovingDigits:
    """Digits that bounce off the borders, made as they are asked for.

    Args:
        digits: N, side, side; see `make_clip`.
        count: clips an epoch.
        frames: of a clip, observed and to come.
        num_digits: in each.
        seed: of the clips that are made without a generator.
    """

    def __init__(self, digits: NDArray[np.uint8], count: int, frames: int, num_digits: int, seed: int = VALIDATION_SEED) -> None:
        self.digits, self.count, self.num_digits, self.seed = digits, count, num_digits, seed
        self.shape: tuple[int, ...] = (frames, 1, SIDE, SIDE)

    def __len__(self) -> int:
        return self.count

    def clip(self, index: int, rng: np.random.Generator | None) -> Clip:
        rng = np.random.default_rng([self.seed, index]) if rng is None else rng
        return make_clip(self.digits, rng, frames=self.shape[0], num_digits=self.num_digits)[:, None].astype(np.float32) / np.float32(255)


class ArrayClips:
    """Clips cut from arrays in memory.

    Args:
        videos: (T, C, H, W) each, of one shape but for T.
        frames: of a clip. stride, hop: see `ForecastSettings`.
        mean, std: what is subtracted, and then divided by.
    """

    def __init__(
        self, videos: Sequence[NDArray], frames: int, *, stride: int = 1, hop: int = 1, mean: float = 0.0, std: float = 1.0
    ) -> None:
        self.videos, self.stride, self.mean, self.std = videos, stride, np.float32(mean), np.float32(std)
        self.starts = clip_starts([len(video) for video in videos], frames, stride, hop)
        self.shape: tuple[int, ...] = (frames, *videos[0].shape[1:])

    def __len__(self) -> int:
        return len(self.starts)

    def clip(self, index: int, rng: np.random.Generator | None) -> Clip:
        video, start = self.starts[index]
        values = self.videos[video][start : start + self.shape[0] * self.stride : self.stride]
        return (values.astype(np.float32) - self.mean) / self.std


class VideoClips:
    """Clips of videos: folders of pictures are read as they are needed, video files are decoded once, into bytes of the final size.

    Args:
        paths: video files and folders of pictures.
        frames: of a clip. stride, hop, size, colours: see `ForecastSettings`.

    Raises:
        InputError: for what does not decode, and videos of several sizes where none is given.
    """

    def __init__(
        self, paths: Sequence[Path], frames: int, *, stride: int, hop: int, size: tuple[int, int] | None, colours: Colours
    ) -> None:
        self.stride, self.size, self.colours = stride, size, colours
        self.videos: list[list[Path] | NDArray[np.uint8]] = [
            list_pictures(path) if path.is_dir() else np.stack([prepared(frame, size, colours) for frame in stream_frames(path)])
            for path in paths
        ]
        shapes = [self._frame(video[0]).shape for video in self.videos if len(video)]
        for path, shape in zip(paths, shapes, strict=False):
            if shape != shapes[0]:
                raise InputError(f"{path}: is {shape[2]} x {shape[1]}, and those before it {shapes[0][2]} x {shapes[0][1]}; set a size")
        self.starts = clip_starts([len(video) for video in self.videos], frames, stride, hop)
        self.shape: tuple[int, ...] = (frames, *shapes[0])

    def __len__(self) -> int:
        return len(self.starts)

    def clip(self, index: int, rng: np.random.Generator | None) -> Clip:
        video, start = self.starts[index]
        chosen = self.videos[video][start : start + self.shape[0] * self.stride : self.stride]
        frames = [self._frame(frame) for frame in chosen]
        if any(frame.shape != self.shape[1:] for frame in frames):
            raise InputError(f"{chosen[0]}: this picture and those after it are of several sizes; set a size")
        return np.stack(frames).astype(np.float32) / np.float32(255)

    def _frame(self, frame: Path | NDArray[np.uint8]) -> NDArray[np.uint8]:
        return prepared(read_picture(frame), self.size, self.colours) if isinstance(frame, Path) else frame


def prepared(frame: NDArray[np.uint8], size: tuple[int, int] | None, colours: Colours) -> NDArray[np.uint8]:
    """A frame (height, width, 3), RGB, as (C, *size), uint8."""
    import cv2

    if size is not None and frame.shape[:2] != tuple(size):
        frame = np.asarray(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    if colours == "grey":
        return np.asarray(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), np.uint8)[None]
    return np.ascontiguousarray((frame if colours == "rgb" else frame[..., ::-1]).transpose(2, 0, 1))


def clip_starts(lengths: Sequence[int], frames: int, stride: int, hop: int) -> list[tuple[int, int]]:
    """(video, first frame) of every clip.

    Raises:
        InputError: where all videos are too short for one.
    """
    span = (frames - 1) * stride + 1
    starts = [(video, start) for video, length in enumerate(lengths) for start in range(0, length - span + 1, hop)]
    if not starts:
        raise InputError(f"a clip takes {span} frames ({frames} with stride {stride}), and the longest video has {max(lengths, default=0)}")
    return starts


@dataclass(frozen=True)
class Part:
    """Some of the clips of others.

    Attributes:
        whole: all of them. rows: which.
    """

    whole: Clips
    rows: Sequence[int]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.whole.shape

    def __len__(self) -> int:
        return len(self.rows)

    def clip(self, index: int, rng: np.random.Generator | None) -> Clip:
        return self.whole.clip(self.rows[index], rng)
