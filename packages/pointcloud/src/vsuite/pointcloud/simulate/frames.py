"""Labelled lidar frames of random streets: one at a time, or a data set of them on disk."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path, remove_leftovers, write_text
from vsuite.pointcloud.simulate.lidar import Profile, find_profile, scan
from vsuite.pointcloud.simulate.objects import CLASSES
from vsuite.pointcloud.simulate.streets import make_street

BOX_MARGIN = 0.03
"""Metres by which a label exceeds its object on each side, as annotators draw boxes: range noise then leaves few points outside."""

Classes = Mapping[str, str | None]


@dataclasses.dataclass
class Sweep:
    """One labelled sweep.

    Attributes:
        points: N, 4 float32 `x y z intensity`, in the sensor's level frame: x forward, y left, z up, metres.
        boxes: M, 7 float32 `x y z length width height yaw`, z the centre, length along the heading, yaw in [-pi, pi).
        names: the M classes.
        num_points: M int64, the returns of each object.
        beam: N int64, the beam of each point, from the top.
        owner: N int64, the row of `boxes` each point was reflected from, -1 for scenery and unlabelled objects.
    """

    points: NDArray[np.float32]
    boxes: NDArray[np.float32]
    names: list[str]
    num_points: NDArray[np.int64]
    beam: NDArray[np.int64]
    owner: NDArray[np.int64]


def simulate_sweep(
    rng: np.random.Generator, profile: str | Profile = "hdl64", *, min_points: int = 1, classes: Classes | None = None
) -> Sweep:
    """A sweep through a random street, with all that is known of it.

    Args:
        rng: all randomness comes from here.
        profile: a name of `lidar.PROFILES` or a profile.
        min_points: objects with fewer returns get no label; 0 labels hidden ones as well.
        classes: renames classes, such as `{"Van": "Car", "Truck": None}`; None leaves them without a label. Others stay as they are.
    """
    profile = find_profile(profile)
    sensor, (roll, pitch) = profile.randomisation.apply(profile.sensor, rng)
    street = make_street(rng, height=sensor.height, ahead_only=sensor.camera)
    returns = scan(street.mesh, sensor, rng, roll=roll, pitch=pitch)
    owner = street.owner[returns.triangle]
    count = np.bincount(owner[owner >= 0], minlength=len(street.names))
    names = [_rename(name, classes) for name in street.names]
    kept = np.array([name is not None for name in names], dtype=bool) & (count >= min_points)
    boxes = street.boxes[kept]
    boxes[:, 3:6] += 2 * BOX_MARGIN
    row = np.append(np.where(kept, np.cumsum(kept) - 1, -1), -1)  # the last one answers for owner -1
    labelled = [name for name, keep in zip(names, kept, strict=True) if keep and name is not None]
    return Sweep(returns.points, boxes, labelled, count[kept], returns.beam, row[owner])


def _rename(name: str, classes: Classes | None) -> str | None:
    return name if classes is None else classes.get(name, name)


def simulate_frame(
    rng: np.random.Generator, profile: str | Profile = "hdl64", *, min_points: int = 1, classes: Classes | None = None
) -> tuple[NDArray[np.float32], NDArray[np.float32], list[str]]:
    """Points (N, 4), boxes (M, 7) and their M classes of a sweep through a random street; see `simulate_sweep`."""
    sweep = simulate_sweep(rng, profile, min_points=min_points, classes=classes)
    return sweep.points, sweep.boxes, sweep.names


def write_frames(
    folder: str | Path,
    count: int,
    *,
    seed: int = 0,
    profile: str | Profile = "hdl64",
    workers: int = 1,
    split: float = 0.2,
    min_points: int = 1,
    classes: Classes | None = None,
    progress: bool = True,
) -> Path:
    """Writes a data set of simulated frames in OpenPCDet's custom layout.

    Frame i depends on `seed` and i alone: neither on `workers` nor on `count`. A run that was broken off goes on where it
    stopped, and a larger `count` adds frames; other settings than those in the folder are refused.

    Args:
        folder: receives points/NAME.bin (float32 x y z intensity), labels/NAME.txt ("x y z length width height yaw class"),
            ImageSets/train.txt and val.txt, and dataset.json (classes, columns and the settings of the simulation).
        count: number of frames, named 000000, 000001, ...
        workers: processes. With more than one, a script needs the usual `if __name__ == "__main__":`.
        split: share of the frames for validation, spread evenly; 0.2 is every fifth.
        min_points, classes: as in `simulate_sweep`.

    Returns:
        The folder.

    Raises:
        InputError: for numbers out of range, unknown profiles and classes, or a folder that holds another data set.
    """
    folder, profile = Path(folder), find_profile(profile)
    _check(count, workers, split, min_points, classes)
    description = _description(seed, profile, min_points, classes)
    _claim(folder, description)
    write = functools.partial(_write_frame, folder, seed, profile, min_points, dict(classes or {}))
    missing = [index for index in range(count) if not _paths(folder, index)[1].is_file()]
    with _bar(count, progress) as advance:
        advance(count - len(missing))
        for _ in _mapped(write, missing, workers):
            advance(1)
    validation = [math.floor((index + 1) * split + 1e-9) > math.floor(index * split + 1e-9) for index in range(count)]
    for name, wanted in (("train", False), ("val", True)):
        names = [f"{index:06d}\n" for index, held_out in enumerate(validation) if held_out is wanted]
        write_text(folder / "ImageSets" / f"{name}.txt", "".join(names))
    return folder


def _check(count: int, workers: int, split: float, min_points: int, classes: Classes | None) -> None:
    if count < 1:
        raise InputError(f"count: {count} given; at least 1 frame is needed")
    if workers < 1:
        raise InputError(f"workers: {workers} given; at least 1 is needed")
    if not 0 <= split <= 1:
        raise InputError(f"split: {split} given; the share of frames for validation lies between 0 and 1")
    if min_points < 0:
        raise InputError(f"min_points: {min_points} given; allowed is 0 or more")
    for name in classes or {}:
        if name not in CLASSES:
            raise unknown("simulated class", name, CLASSES)


def _description(seed: int, profile: Profile, min_points: int, classes: Classes | None) -> dict[str, Any]:
    names = [_rename(name, classes) for name in CLASSES]
    return {
        "classes": list(dict.fromkeys(name for name in names if name is not None)),
        "columns": ["x", "y", "z", "intensity"],
        "simulation": {"seed": seed, "min_points": min_points, "classes": dict(classes or {}), **dataclasses.asdict(profile)},
    }


def _claim(folder: Path, description: dict[str, Any]) -> None:
    """Writes dataset.json, or makes sure that the one that is there says the same."""
    path = folder / "dataset.json"
    text = json.dumps(description, indent=1) + "\n"
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty and holds no simulated data set; give a new folder")
        write_text(path, text)
        return
    if path.read_text(encoding="utf-8") != text:
        raise InputError(f"{folder}: holds frames of other settings (see dataset.json); give a new folder or the same settings")
    for name in ("points", "labels", "ImageSets"):
        remove_leftovers(folder / name)


def _paths(folder: Path, index: int) -> tuple[Path, Path]:
    """Points and labels of a frame; the labels are written last, so that where they are, the frame is whole."""
    return folder / "points" / f"{index:06d}.bin", folder / "labels" / f"{index:06d}.txt"


def _write_frame(folder: Path, seed: int, profile: Profile, min_points: int, classes: Classes, index: int) -> None:
    points, boxes, names = simulate_frame(np.random.default_rng([seed, index]), profile, min_points=min_points, classes=classes)
    points_path, labels_path = _paths(folder, index)
    with atomic_path(points_path) as path:
        points.tofile(path)
    lines = [" ".join(f"{value:.4f}" for value in box) + f" {name}\n" for box, name in zip(boxes, names, strict=True)]
    write_text(labels_path, "".join(lines))


def _mapped(function: Callable[[int], None], indices: list[int], workers: int) -> Iterator[None]:
    """`function` of every index, in processes if there is more than one; fresh ones, since threads of open3d do not survive a fork."""
    if workers == 1 or len(indices) < 2:
        yield from map(function, indices)
        return
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(min(workers, len(indices)), mp_context=context) as pool:
        yield from pool.map(function, indices, chunksize=1)


@contextlib.contextmanager
def _bar(count: int, show: bool) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; gives the function that advances it."""
    if not show:
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bars:
        task = bars.add_task("frames", total=count)
        yield lambda done: bars.advance(task, done)
