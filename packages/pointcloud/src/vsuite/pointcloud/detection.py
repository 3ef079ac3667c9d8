"""Training a detector: sweeps and boxes as samples, and what the training loop asks for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vsuite.core import create_model
from vsuite.core.files import atomic_path
from vsuite.core.training import TrainingDataset
from vsuite.core.training.processes import from_all
from vsuite.core.training.start import start_from
from vsuite.pointcloud.boxes import Detections, to_mmdet
from vsuite.pointcloud.data.clouds import PointCloud
from vsuite.pointcloud.data.frames import Frame, points_in_box_count
from vsuite.pointcloud.data.paste import ObjectDatabase, build_database, paste_objects
from vsuite.pointcloud.data.transforms import Sample, compose, range_crop
from vsuite.pointcloud.inference import NOTE, ModelNote, named
from vsuite.pointcloud.settings import RunSettings, SweepSettings


def labels_of(frame: Frame, classes: Sequence[str]) -> np.ndarray:
    """Indices of a frame's class names, (M,) int64."""
    return np.array([classes.index(name) for name in frame.labels or ()], np.int64)


class SweepSamples:
    """Training samples: augmented sweeps, their boxes and labels; see `vsuite.core.training.task.TrainingDataset`.

    Args:
        frames: with boxes, of the classes to learn.
        bounds: x y z (low) x y z (high) of what the detector sees.
        objects: to paste, or None.
    """

    def __init__(
        self, frames: Sequence[Frame], settings: SweepSettings, note: ModelNote, bounds: Sequence[float], objects: ObjectDatabase | None
    ) -> None:
        self.frames, self.settings, self.note, self.bounds, self.objects = list(frames), settings, note, list(bounds), objects
        self.augment = compose(settings.augment)

    def __len__(self) -> int:
        return len(self.frames)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        frame = self.frames[index]
        cloud = frame.read()
        assert frame.boxes is not None
        seen = points_in_box_count(cloud.points, frame.boxes) >= self.settings.min_points
        columns = {name: cloud.columns[name] for name in self.note.columns}
        sample = Sample(cloud.points, columns, frame.boxes[seen], labels_of(frame, self.settings.classes)[seen])
        if self.objects is not None:
            sample = paste_objects(sample, self.objects, rng, self.settings.paste, self.settings.classes)
        sample = range_crop(self.augment(sample, rng), rng, bounds=self.bounds)
        assert sample.boxes is not None
        assert sample.labels is not None
        return {
            "points": self.note.sweep(PointCloud(sample.points, sample.columns, frame.path)),
            "boxes": torch.from_numpy(np.ascontiguousarray(sample.boxes, np.float32)),
            "labels": torch.from_numpy(sample.labels),
        }

    def collate(self, samples: Sequence[dict[str, Tensor]]) -> dict[str, list[Tensor]]:
        """Sweeps differ in size, so they stay apart."""
        return {name: [sample[name] for sample in samples] for name in samples[0]}


class DetectionTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, training: Sequence[Frame], validation: Sequence[Frame]) -> None:
        self.settings, self.training, self.validation = settings, list(training), list(validation)
        sweeps = settings.sweeps
        self.note = ModelNote(
            task="detect", classes=sweeps.classes, columns=sweeps.columns, column_scales=sweeps.column_scales, tanh=sweeps.tanh
        )

    def build_model(self) -> nn.Module:
        model = self._new_model()
        if self.settings.weights:
            start_from(model, self.settings.weights)
        return model

    def _new_model(self) -> nn.Module:
        settings = self.settings
        names = tuple(self.note.classes)
        options: dict[str, Any] = {"in_channels": 3 + len(self.note.columns), "num_classes": len(names), "class_names": names}
        return create_model(settings.model, **(options | settings.options))

    def training_data(self) -> TrainingDataset:
        with torch.device("meta"):  # the range alone is wanted
            bounds = self._new_model().point_cloud_range
        sweeps = self.settings.sweeps
        objects = None
        if sweeps.paste:
            objects = build_database(
                self.training, classes=list(sweeps.paste), columns=self.note.columns, min_points=sweeps.min_paste_points
            )
        return SweepSamples(self.training, sweeps, self.note, bounds, objects)  # type: ignore[arg-type]

    def loss(self, model: nn.Module, batch: dict[str, Any]) -> dict[str, Tensor]:
        maps = model(batch["points"])
        detector: Any = getattr(model, "module", model)  # the model itself, where it is wrapped for several processes
        return detector.bbox_head.loss(maps, [to_mmdet(boxes) for boxes in batch["boxes"]], batch["labels"])

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """Average precision over the validation frames; see `vsuite.pointcloud.evaluation.validation_scores`."""
        from vsuite.pointcloud.evaluation import found_of, truths_of, validation_scores

        pairs = {}
        for index in range(rank, len(self.validation), world_size):
            frame = self.validation[index]
            cloud = frame.read()
            pairs[index] = truths_of(frame, cloud), found_of(named(self._detect(model, cloud, device), self.note.classes))
        everything = {index: pair for part in from_all(pairs) for index, pair in part.items()}
        return validation_scores([everything[index] for index in sorted(everything)], self.note.classes)

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Sweeps from above: true boxes white, found ones in colour."""
        from PIL import Image

        from vsuite.pointcloud.viewer.picture import bird_eye

        paths = []
        for frame in self.validation[: self.settings.validation.pictures]:
            cloud = frame.read()
            found = self._detect(model, cloud, device)
            names = [self.note.classes[label] for label in found.labels.tolist()]
            drawn = bird_eye(cloud.points, frame.boxes, found.boxes.numpy(), found_labels=names, scores=found.scores.numpy(), threshold=0.2)
            paths.append(folder / f"{Path(frame.name).name}.png")
            with atomic_path(paths[-1]) as temporary:
                Image.fromarray(drawn).save(temporary)
        return paths

    def metadata(self) -> dict[str, Any]:
        return {NOTE: self.note.model_dump(), "recipe": self.settings.name}

    def _detect(self, model: Any, cloud: PointCloud, device: torch.device) -> Detections:
        (found,) = model.predict([self.note.sweep(cloud).to(device)], score_threshold=0.1)
        return found.to("cpu")
