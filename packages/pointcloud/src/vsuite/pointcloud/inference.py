"""Loaded models that answer: boxes in sweeps, classes of shapes, parts of shapes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from vsuite.core.devices import Precision, autocast, check_precision, pick_device
from vsuite.core.errors import InputError, unknown
from vsuite.core.optimize import optimize_for_inference
from vsuite.core.unpickling import read_restricted
from vsuite.core.weights import find_weights, load_published, read_metadata
from vsuite.pointcloud.boxes import Detections
from vsuite.pointcloud.data import nuscenes
from vsuite.pointcloud.data.boxes_io import Boxes
from vsuite.pointcloud.data.clouds import PointCloud, read_cloud, without_close
from vsuite.pointcloud.data.transforms import Placement, Sample
from vsuite.pointcloud.metrics.shapes import limit_to_parts
from vsuite.pointcloud.models.centerpoint import options_of_meta
from vsuite.pointcloud.settings import Task
from vsuite.pointcloud.voting import vote

NOTE = "pointcloud"  # key of the note in a weights file
SHIPPED: dict[Task, str] = {"detect": "centerpoint_streets", "classify": "pointnet2_solids"}  # weights that come with the package


class ModelNote(BaseModel):
    """What a weights file says beside the weights: what goes in, and what comes out.

    Attributes:
        task: see `RecipeSettings`.
        classes: names, in the order of the outputs.
        columns, column_scales, tanh: see `SweepSettings`.
        points, normalise: see `ShapeSettings`. parts: of each class, for the task "parts".
    """

    model_config = ConfigDict(extra="forbid")

    task: Task
    classes: list[str] = Field(min_length=1)
    columns: list[str] = []
    column_scales: dict[str, float] = {}
    tanh: list[str] = []
    points: int = 1024
    normalise: bool = True
    parts: list[list[int]] = []

    def sweep(self, cloud: PointCloud) -> Tensor:
        """The network's input of a sweep: P, 3 + len(columns), float32. Without `time` all points are of age 0, with a warning.

        Raises:
            InputError: where the cloud lacks a column.
        """
        parts = [cloud.points]
        for name in self.columns:
            if name == "time" and name not in cloud.columns:
                # The text names no file, so that Python shows it once, not once a sweep.
                warnings.warn("points have no time: all are taken to be of age 0; the model was trained to read their age", stacklevel=2)
                parts.append(np.zeros((len(cloud), 1), np.float32))
                continue
            if name not in cloud.columns:
                raise InputError(f"{cloud.path or 'the cloud'}: lacks the column {name!r}, which this model reads; it has {_names(cloud)}")
            values = cloud.columns[name].astype(np.float32)[:, None] / np.float32(self.column_scales.get(name, 1.0))
            parts.append(np.tanh(values) if name in self.tanh else values)
        return torch.from_numpy(np.ascontiguousarray(np.concatenate(parts, axis=1), dtype=np.float32))

    def shape(self, points: NDArray[np.float32]) -> Tensor:
        """The network's input of a shape: `points` x 3.

        Raises:
            InputError: for fewer than 8 points, and where all of them are one.
        """
        return torch.from_numpy(np.ascontiguousarray(self.normalised(points[self.chosen(points)]), np.float32))

    def chosen(self, points: NDArray[np.float32]) -> NDArray[np.int64]:
        """Rows of the points that the network reads: the first ones; fewer are repeated."""
        if len(points) < 8:
            raise InputError(f"{len(points)} points are too few for a shape; 8 or more are needed")
        return np.arange(self.points) % len(points)

    def normalised(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        return unit_sphere(points) if self.normalise else points


def _names(cloud: PointCloud) -> str:
    return ", ".join(["x", "y", "z", *cloud.columns])


def unit_sphere(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centred at the mean, the farthest point at distance 1; raises `InputError` where all points are one."""
    centred = points - points.mean(axis=0, dtype=np.float64)
    radius = np.sqrt((centred**2).sum(axis=1).max())
    if radius == 0:
        raise InputError(f"all {len(points)} points lie in one place")
    return np.ascontiguousarray(centred / radius, dtype=np.float32)


def load_model(source: str | Path) -> tuple[nn.Module, ModelNote]:
    """The network of a weights file, run folder or name of shipped weights, and its note.

    A published detector of nuScenes' ten classes needs no note: its points are x y z intensity and their age in seconds. The size of
    voxels and the coding of boxes are read from what mmdetection3d's training noted in the file, else assumed, and a warning says how.

    Raises:
        InputError: for files that are no weights of a model of this package, or say nothing about their classes.
    """
    path = find_weights(source)
    note = read_metadata(path).get(NOTE)
    if note is None:
        return _published_detector(path)
    try:
        return load_published(path).eval(), ModelNote.model_validate(note)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: its note on the classes is damaged: {error.errors()[0]['msg']}") from error


def _published_detector(path: Path) -> tuple[nn.Module, ModelNote]:
    model: Any = load_published(path, **_noted(path)).eval()
    columns = {4: ["intensity"], 5: ["intensity", "time"]}.get(getattr(model, "in_channels", 0))
    if getattr(model, "class_names", None) != nuscenes.CLASSES or columns is None:
        raise InputError(f"{path}: does not say what its outputs mean; it is no file that `vsuite-pointcloud train` saved")
    if assumed := model.built_from.get("assumed"):
        given = ", ".join(f"{name} {value}" for name, value in assumed.items())
        warnings.warn(f"{path}: does not tell all; assumed {given}; load_published takes others, and save_weights keeps them", stacklevel=3)
    return model, ModelNote(task="detect", classes=list(model.class_names), columns=columns)


def _noted(path: Path) -> dict[str, Any]:
    """The options that the `meta` of mmdetection3d's CenterPoint tells; empty for other models, and for formats of tensors alone."""
    content = {} if path.suffix in (".safetensors", ".npz") else read_restricted(path)
    meta, state = (content.get(name) if isinstance(content, dict) else None for name in ("meta", "state_dict"))
    if not isinstance(meta, dict) or not isinstance(state, dict) or "pts_middle_encoder.conv_input.0.weight" not in state:
        return {}
    return options_of_meta(meta)


def shipped(task: Task | None) -> str:
    """The name of the weights that come with the package for a task; raises `InputError` where there are none."""
    name = SHIPPED.get(task or "detect")
    if name is None:
        raise InputError(f"no weights for the task {task!r} come with the package: name some (--weights); there are {', '.join(SHIPPED)}")
    return name


def named(found: Detections, classes: Sequence[str]) -> Boxes:
    """A model's detections with the names of their classes."""
    return Boxes(found.boxes.numpy(), [classes[label] for label in found.labels.tolist()], found.scores.numpy())


class Predictor:
    """A model kept in memory for any number of clouds.

    Args:
        source: weights that `vsuite-pointcloud train` saved, a run folder, or the name of shipped weights; None takes those that
            come with the package for the task.
        task: what the weights must be for; None accepts any, and is "detect" where no weights are named.
        device: "cpu", "cuda" or "cuda:N"; "auto" or None takes a GPU where there is one.
        precision: "fp32", or "bf16" / "fp16" for autocast.

    Raises:
        InputError: for files that are no weights of this package, and weights for another task.
    """

    def __init__(
        self,
        source: str | Path | None = None,
        *,
        task: Task | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
    ) -> None:
        check_precision(precision)
        self.source = str(source or shipped(task))
        network, self.note = load_model(self.source)
        if task is not None and task != self.note.task:
            raise InputError(f"{self.source}: is for the task {self.note.task!r}, not {task!r}")
        self.device, self.precision = pick_device(device), precision
        self.model: Any = optimize_for_inference(network, precision=precision).to(self.device)

    def detect(
        self, cloud: PointCloud | str | Path, *, score_threshold: float = 0.1, turn: float = 0.0, remove_close: float | None = None
    ) -> Detections:
        """Boxes of one sweep, on the CPU, the surest first.

        Args:
            score_threshold: boxes that score less are left out.
            turn: degrees by which the sweep is turned about z first, counter-clockwise; the boxes are turned back. A sensor whose
                x does not look ahead needs it: -90 for nuScenes, unless the model was trained on nuScenes itself.
            remove_close: metres; points on the sensor's own vehicle, nearer than this, are left out (see `without_close`).

        Raises:
            InputError: for clouds that cannot be used, and weights for another task.
        """
        self._require("detect")
        read, placement = without_close(_read(cloud), remove_close), Placement(angle=math.radians(turn))
        turned = replace(read, points=placement.apply(Sample(read.points)).points) if turn else read
        with torch.inference_mode(), autocast(self.device, self.precision):
            (found,) = self.model.predict([self.note.sweep(turned).to(self.device)], score_threshold=score_threshold)
        order = found.scores.argsort(descending=True, stable=True)
        boxes = found.boxes[order].cpu()
        if turn:
            boxes = torch.from_numpy(placement.undo_boxes(boxes.numpy()))
        return Detections(boxes, found.scores[order].cpu(), found.labels[order].cpu())

    def classify(self, clouds: Sequence[PointCloud | str | Path], *, votes: int = 1) -> NDArray[np.float32]:
        """Probabilities of shapes: N, classes; the mean over `votes` scaled copies of each (see `voting.vote`).

        Raises:
            InputError: for clouds that cannot be used (which, and why), and weights for another task.
        """
        self._require("classify")
        shapes = torch.stack([self.check_shape(cloud) for cloud in clouds])
        with torch.inference_mode(), autocast(self.device, self.precision):
            return vote(self.model, shapes.to(self.device), copies=votes).float().cpu().numpy()

    def label_parts(self, cloud: PointCloud | str | Path, category: str) -> NDArray[np.int64]:
        """The part of every point of a shape of a known class: N. Points beyond those that the network reads take the nearest one's.

        Raises:
            InputError: for clouds that cannot be used, an unknown class, and weights for another task.
        """
        from scipy.spatial import cKDTree

        self._require("parts")
        if category not in self.note.classes:
            raise unknown("category", category, self.note.classes)
        read, kind = _read(cloud), self.note.classes.index(category)
        shape = self.check_shape(read)
        with torch.inference_mode(), autocast(self.device, self.precision):
            logits = self.model(shape[None].to(self.device), torch.tensor([kind], device=self.device)).float().cpu().numpy()
        (labels,) = limit_to_parts(logits, [kind], self.note.parts)
        rows = self.note.chosen(read.points)
        _, nearest = cKDTree(read.points[rows]).query(read.points)
        return labels[nearest]

    def check_shape(self, cloud: PointCloud | str | Path) -> Tensor:
        """The network's input of a cloud; raises `InputError`, which names the file, where it cannot be used."""
        read = _read(cloud)
        try:
            return self.note.shape(read.points)
        except InputError as error:
            raise InputError(f"{read.path}: {error}" if read.path else str(error)) from error

    def _require(self, task: Task) -> None:
        if self.note.task != task:
            raise InputError(f"{self.source}: is for the task {self.note.task!r}, not {task!r}")


def _read(cloud: PointCloud | str | Path) -> PointCloud:
    return cloud if isinstance(cloud, PointCloud) else read_cloud(cloud)
