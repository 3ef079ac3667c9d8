"""Training a model of point clouds: a data set and a recipe in, a run folder out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.training import TrainingResult, TrainingTask
from vsuite.core.training.by_recipe import train_by_recipe
from vsuite.pointcloud.data.detection import read_detection
from vsuite.pointcloud.data.frames import Frame
from vsuite.pointcloud.data.nuscenes import sweeps_for
from vsuite.pointcloud.data.shapes import ShapeData, read_shapes, shape_splits
from vsuite.pointcloud.detection import DetectionTask
from vsuite.pointcloud.settings import RECIPES, RunSettings
from vsuite.pointcloud.shapes import ShapeTask

resolve_settings = RECIPES.resolve
MODEL_TASKS = {"detect": "3d detection", "classify": "shape classification", "parts": "part segmentation"}


def train(
    settings: RunSettings, out: str | Path, *, device: str = "auto", resume: bool = False, say: Callable[[str], None] = print
) -> TrainingResult:
    """Trains, and leaves a run folder (see `vsuite.core.training`). Every process of a distributed run calls this.

    Args:
        settings: see `resolve_settings`.
        out: the run folder.
        resume: continue the run in `out`.
        say: takes lines about what was understood; never called in other processes than the first.

    Raises:
        InputError: for everything that is wrong with the data or the settings, before training starts.
    """
    return train_by_recipe(settings, out, make_task, MODEL_TASKS, device=device, resume=resume, say=say)


def make_task(settings: RunSettings) -> tuple[TrainingTask, str]:
    """The task of a run, with its data read, and a line about them."""
    task: DetectionTask | ShapeTask
    if settings.task == "detect":
        frames, held_out = _frames(settings)
        task = DetectionTask(settings, frames, held_out)
        boxes = sum(len(frame.labels or ()) for frame in frames)
        about = f"{len(frames)} frames with {boxes} boxes to train on, {len(held_out)} to validate on: {', '.join(task.note.classes)}"
    else:
        shapes, held_out_shapes = _shapes(settings)
        task = ShapeTask(settings, shapes, held_out_shapes)
        about = f"{len(shapes[1])} shapes to train on, {len(held_out_shapes[1])} to validate on: {', '.join(shapes[0].class_names)}"
    return task, about


def _every(count: int, chosen: int) -> list[int]:
    """`chosen` of `count` numbers, evenly spread."""
    return [count * number // chosen for number in range(chosen)]


def _frames(settings: RunSettings) -> tuple[list[Frame], list[Frame]]:
    """Frames to train on and to validate on, with the boxes of the classes to learn."""
    root, sweeps = Path(settings.data), settings.sweeps
    read = partial(read_detection, root, sweeps=sweeps_for(sweeps.columns))
    if (root / "ImageSets" / "val.txt").is_file():
        training, held_out = read("train").frames, read("val").frames
    else:
        frames = [frame for frame in read().frames if frame.boxes is not None]
        training, held_out = _divided(frames, settings)
    most = min(len(held_out), settings.validation.most or len(held_out))
    columns = tuple(sweeps.columns)
    training, held_out = (
        [replace(frame.of_classes(sweeps.classes, sweeps.merge), columns=columns) for frame in part if frame.boxes is not None]
        for part in (training, held_out)
    )
    if not any(frame.labels for frame in training):
        raise InputError(f"{root}: no box to train on is a {' or '.join(settings.sweeps.classes)}")
    return training, [held_out[i] for i in _every(len(held_out), most)]


def _divided(items: list[Any], settings: RunSettings) -> tuple[list[Any], list[Any]]:
    count = max(1, round(len(items) * settings.validation.fraction))
    if count >= len(items):
        raise InputError(f"{settings.data}: {len(items)} labelled ones are too few to train on and to validate on")
    chosen = set(_every(len(items), count))
    return [item for i, item in enumerate(items) if i not in chosen], [items[i] for i in sorted(chosen)]


def _shapes(settings: RunSettings) -> tuple[tuple[ShapeData, list[int]], tuple[ShapeData, list[int]]]:
    """Shapes to train on and to validate on, with the rows of each. Where the data set names none to validate on, some are held out;
    what it keeps to test on is left alone."""
    splits = shape_splits(settings.data)
    whole = read_shapes(settings.data, "train" if "train" in splits else None)
    if "val" in splits:
        held_out = read_shapes(settings.data, "val")
        return (whole, list(range(len(whole)))), (held_out, _limited(list(range(len(held_out))), settings))
    # The shapes of a class lie together in most data sets: those held out are drawn at random.
    rows, held_out_rows = _divided(np.random.default_rng(0).permutation(len(whole)).tolist(), settings)
    return (whole, rows), (whole, _limited(held_out_rows, settings))


def _limited(rows: list[int], settings: RunSettings) -> list[int]:
    return [rows[i] for i in _every(len(rows), min(len(rows), settings.validation.most or len(rows)))]
