"""Reading data sets of video prediction: Moving MNIST, TaxiBJ, WeatherBench, arrays of clips, folders of videos."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.video_pose.data.arrays import names_of, read_npy, read_npz
from vsuite.video_pose.data.digits import draw_digits, read_digits
from vsuite.video_pose.data.videos import VIDEO_SUFFIXES, list_pictures
from vsuite.video_pose.forecast.clips import TEST_SEED, ArrayClips, Clips, MovingDigits, Part, VideoClips
from vsuite.video_pose.forecast.settings import ForecastSettings, Layout
from vsuite.video_pose.forecast.weather import read_weather
from vsuite.video_pose.outcome import evenly

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("test", "val", "train")  # that are judged by, the best ones first

DRAWN = "drawn"  # in place of a path: Moving MNIST of drawn digits
DRAWN_DIGITS = 4000
HELD_OUT_CLIPS = 200  # of Moving MNIST, where no fixed test sequences are there
TRAIN_DIGITS = ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "train-images.idx3-ubyte", "digits.npz", "mnist.npz")
TEST_SEQUENCES = "mnist_test_seq.npy"


@dataclass(frozen=True)
class ForecastData:
    """A data set.

    Attributes:
        layout: see `ForecastSettings`.
        splits: the clips of each.
        mean, std: what was subtracted from the values, and what they were divided by.
    """

    layout: Layout
    splits: dict[Split, Clips]
    mean: float = 0.0
    std: float = 1.0

    def split(self, name: str | None) -> Clips:
        """The clips of a split; None takes test, else val, else all that there is.

        Raises:
            InputError: for a split that the data set does not have.
        """
        if name is None:
            return next(self.splits[key] for key in SPLITS if key in self.splits)
        found = next((clips for split, clips in self.splits.items() if split == name), None)
        if found is None:
            raise InputError(f"the data set has no split {name!r}; it has {', '.join(self.splits)}")
        return found


def read_data(path: str | Path, settings: ForecastSettings, *, scale: tuple[float, float] | None = None) -> ForecastData:
    """Reads a data set; its splits are those that it has itself.

    Args:
        path: file or folder; "drawn" draws digits for Moving MNIST.
        scale: mean and standard deviation of WeatherBench's values; None measures them on the training years.

    Raises:
        InputError: for data that cannot be read, whose shapes do not fit, or that hold NaN.
    """
    layout = settings.layout or find_layout(path)
    readers: dict[Layout, Callable[[], ForecastData]] = {
        "moving_mnist": lambda: _moving_mnist(path, settings),
        "taxibj": lambda: _taxibj(Path(path), settings),
        "weatherbench": lambda: _weatherbench(Path(path), settings, scale),
        "clips": lambda: _array(Path(path), settings),
        "videos": lambda: _videos(Path(path), settings),
    }
    if str(path) != DRAWN and not Path(path).exists():
        raise InputError(f"{path}: no such file or folder")
    return readers[layout]()


def find_layout(path: str | Path) -> Layout:
    """What a file or a folder holds; raises `InputError` where that cannot be told."""
    if str(path) == DRAWN:
        return "moving_mnist"
    path = Path(path)
    if path.is_dir():
        names = {file.name for file in path.iterdir()}
        if names & {*TRAIN_DIGITS, TEST_SEQUENCES}:
            return "moving_mnist"
        if "dataset.npz" in names:
            return "taxibj"
        return "weatherbench" if any(name.endswith(".nc") for name in names) else "videos"
    if path.name == TEST_SEQUENCES or "idx3-ubyte" in path.name:
        return "moving_mnist"
    if path.suffix == ".npz" and path.is_file():
        return "taxibj" if "X_train" in names_of(path) else "moving_mnist"
    if path.suffix == ".npy":
        return "clips"
    if path.suffix == ".nc":
        return "weatherbench"
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return "videos"
    raise InputError(f"{path}: is no data set of videos; set forecast.layout where its name does not say what it is")


def check_finite(values: NDArray, source: object) -> None:
    """Raises `InputError` where values are NaN or infinite, and for what is no number."""
    if values.dtype.kind not in "fiu":
        raise InputError(f"{source}: must hold numbers; it holds {values.dtype}")
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise InputError(f"{source}: holds {np.count_nonzero(~np.isfinite(values))} values that are NaN or infinite")


def _moving_mnist(path: str | Path, settings: ForecastSettings) -> ForecastData:
    total, path = 2 * settings.frames, Path(path)
    folder = path if path.is_dir() else path.parent
    fixed = next((file for file in (path, folder / TEST_SEQUENCES) if file.name == TEST_SEQUENCES and file.is_file()), None)
    source = next((folder / name for name in TRAIN_DIGITS if (folder / name).is_file()), None) if path.is_dir() else path
    if fixed is not None and source in (None, fixed):
        return ForecastData("moving_mnist", {"test": _test_sequences(fixed, total)})
    if str(path) == DRAWN:
        training, unseen = draw_digits(DRAWN_DIGITS, seed=1), draw_digits(DRAWN_DIGITS // 10, seed=2)
    else:
        if source is None:
            raise InputError(f"{path}: holds no digits for Moving MNIST: none of {', '.join([*TRAIN_DIGITS, TEST_SEQUENCES])}")
        digits = read_digits(source)
        if len(digits) < 2:
            raise InputError(f"{source}: one digit is too few to learn from and to test on")
        count = max(1, len(digits) // 10)
        training, unseen = digits[:-count], digits[-count:]
    splits: dict[Split, Clips] = {
        "train": MovingDigits(training, settings.clips, total, settings.digits),
        "val": MovingDigits(unseen, HELD_OUT_CLIPS, total, settings.digits),
        "test": MovingDigits(unseen, HELD_OUT_CLIPS, total, settings.digits, seed=TEST_SEED),
    }
    if fixed is not None:
        splits["test"] = _test_sequences(fixed, total)
    return ForecastData("moving_mnist", splits)


def _test_sequences(path: Path, total: int) -> Clips:
    sequences = read_npy(path)
    if sequences.ndim != 4 or sequences.dtype != np.uint8 or len(sequences) < total:
        raise InputError(f"{path}: must be (frames, clips, height, width), uint8, {total} frames or more; got {sequences.shape}")
    return ArrayClips(list(sequences[:total, :, None].swapaxes(0, 1)), total, std=255)


def _taxibj(path: Path, settings: ForecastSettings) -> ForecastData:
    """X_train, Y_train, X_test, Y_test in [-1, 1], brought to [0, 1]."""
    path = path / "dataset.npz" if path.is_dir() else path
    splits: dict[Split, Clips] = {}
    for split in ("train", "test"):
        observed, later = (read_npz(path, name)[name] for name in (f"X_{split}", f"Y_{split}"))
        wanted = f"(clips, {settings.frames}, channels, height, width)"
        if observed.ndim != 5 or observed.shape != later.shape or observed.shape[1] != settings.frames:
            raise InputError(f"{path}: X_{split} and Y_{split} must be {wanted}; got {observed.shape} and {later.shape}")
        clips = np.concatenate([observed, later], axis=1)
        check_finite(clips, path)
        splits[split] = ArrayClips(list(clips), clips.shape[1], mean=-1, std=2)
    return ForecastData("taxibj", splits, -1, 2)


def _weatherbench(path: Path, settings: ForecastSettings, scale: tuple[float, float] | None) -> ForecastData:
    found: dict[Split, NDArray[np.float32]] = {}
    for split, (first, last) in settings.years.items():
        values = read_weather(path, settings.variable, first, last)
        if values is not None:
            check_finite(values, path)
            found[split] = values
    if scale is None:
        if "train" not in found:
            raise InputError(f"{path}: has none of the years {settings.years['train']} to train on")
        # In float64, as thousands of millions of values are added up.
        scale = float(found["train"].mean(dtype=np.float64)), float(found["train"].std(dtype=np.float64))
        if not scale[1] > 0:
            raise InputError(f"{path}: {settings.variable} has one value everywhere; there is nothing to learn")
    if not found:
        raise InputError(f"{path}: has none of the years of {', '.join(settings.years)}")
    mean, std = scale
    splits: dict[Split, Clips] = {
        split: ArrayClips([values[:, None]], 2 * settings.frames, stride=settings.stride, hop=settings.hop, mean=mean, std=std)
        for split, values in found.items()
    }
    return ForecastData("weatherbench", splits, mean, std)


def _array(path: Path, settings: ForecastSettings) -> ForecastData:
    clips = frames_of(read_npy(path), path, dims=5)
    return ForecastData("clips", {"train": ArrayClips(list(clips), 2 * settings.frames, stride=settings.stride, hop=settings.hop)})


def frames_of(values: NDArray, source: object, *, dims: int) -> NDArray[np.float32]:
    """Frames of an array as (..., T, C, H, W), float32: bytes are divided by 255, and what lacks the channels gets one.

    Args:
        dims: 4 for one clip, 5 for several.

    Raises:
        InputError: for other shapes, and values that are no numbers, NaN or infinite.
    """
    if values.ndim == dims - 1:
        values = values[..., None, :, :]
    if values.ndim != dims or not values.size:
        raise InputError(f"{source}: must be ({'clips, ' * (dims - 4)}frames, channels, height, width); got {values.shape}")
    check_finite(values, source)
    return values.astype(np.float32) / np.float32(255 if values.dtype == np.uint8 else 1)


def _videos(path: Path, settings: ForecastSettings) -> ForecastData:
    def clips(paths: Sequence[Path]) -> Clips:
        return VideoClips(
            paths, 2 * settings.frames, stride=settings.stride, hop=settings.hop, size=settings.size, colours=settings.colours
        )

    named: tuple[Split, ...] = ("train", "val", "test")
    if path.is_dir() and (path / "train").is_dir():
        return ForecastData("videos", {split: clips(find_videos(path / split)) for split in named if (path / split).is_dir()})
    videos = find_videos(path)
    if len(videos) >= 5:
        # Clips of one video resemble each other: whole videos are held out.
        held_out = videos[::10] if len(videos) >= 10 else videos[:1]
        return ForecastData("videos", {"train": clips([v for v in videos if v not in held_out]), "val": clips(held_out)})
    return ForecastData("videos", {"train": clips(videos)})


def find_videos(path: Path) -> list[Path]:
    """The videos of a folder: video files in it and its sub-folders, and folders that hold pictures; a video file is one itself.

    Raises:
        InputError: where there is none.
    """
    if path.is_file():
        return [path]
    files = [file for file in path.rglob("*") if file.suffix.lower() in VIDEO_SUFFIXES and file.is_file()]
    folders = [folder for folder in [path, *path.rglob("*")] if folder.is_dir() and list_pictures(folder)]
    if not files and not folders:
        raise InputError(f"{path}: holds no videos ({', '.join(VIDEO_SUFFIXES)}) and no pictures")
    return sorted([*files, *folders])


def held_out(data: ForecastData, fraction: float, most: int | None) -> tuple[Clips, Clips]:
    """Clips to train on, and clips to validate on: the data set's own, else the last ones of those to train on.

    Those that the data set tests on are left alone.

    Raises:
        InputError: without clips to train on, and for too few.
    """
    if "train" not in data.splits:
        raise InputError(f"there is nothing to train on; the data set has only {', '.join(data.splits)}")
    training = data.splits["train"]
    if "val" in data.splits:
        validation = data.splits["val"]
        return training, Part(validation, evenly(len(validation), most))
    count = max(1, round(len(training) * fraction))
    if count >= len(training):
        raise InputError(f"{len(training)} clips are too few to train on and to validate on")
    first = len(training) - count
    return Part(training, range(first)), Part(training, [first + number for number in evenly(count, most)])
