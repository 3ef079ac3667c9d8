"""Training a classifier or a part segmenter of shapes: clouds as samples, and what the training loop asks for."""

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
from vsuite.core.training.start import start_from
from vsuite.pointcloud.data.shapes import ShapeData
from vsuite.pointcloud.data.transforms import Sample, compose
from vsuite.pointcloud.inference import NOTE, ModelNote
from vsuite.pointcloud.losses import smooth_loss
from vsuite.pointcloud.metrics.shapes import classification_scores, limit_to_parts, mean_ious, shape_ious
from vsuite.pointcloud.settings import RunSettings, ShapeSettings

BATCH = 16  # shapes a call of the network in validation


class ShapeSamples:
    """Training samples; see `vsuite.core.training.task.TrainingDataset`.

    Args:
        data: the shapes.
        rows: which of them.
        parts: whether to give the part of each point.
    """

    def __init__(self, data: ShapeData, rows: Sequence[int], settings: ShapeSettings, note: ModelNote, *, parts: bool) -> None:
        self.data, self.rows, self.note, self.parts = data, list(rows), note, parts
        self.augment = compose(settings.augment)

    def __len__(self) -> int:
        return len(self.rows)

    def sample(self, index: int, rng: np.random.Generator | None) -> dict[str, Tensor]:
        """One shape, augmented unless `rng` is None."""
        row = self.rows[index]
        cloud = self.data[row]
        chosen = self.note.chosen(cloud.points)
        columns = {"label": cloud.columns["label"][chosen]} if self.parts else {}
        sample = Sample(self.note.normalised(cloud.points[chosen]), columns)
        if rng is not None:
            sample = self.augment(sample, rng)
        found = {"points": torch.from_numpy(np.ascontiguousarray(sample.points, np.float32)), "label": torch.tensor(self.data.labels[row])}
        return found | ({"parts": torch.from_numpy(sample.columns["label"].astype(np.int64))} if self.parts else {})


class ShapeTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`.

    Args:
        training, validation: shapes, and the rows of those that count.
    """

    def __init__(
        self, settings: RunSettings, training: tuple[ShapeData, Sequence[int]], validation: tuple[ShapeData, Sequence[int]]
    ) -> None:
        self.settings, shapes, data = settings, settings.shapes, training[0]
        self.parts = [list(parts) for parts in data.parts.values()] if settings.task == "parts" else []
        self.note = ModelNote(
            task=settings.task,
            classes=data.class_names,
            points=shapes.points,
            normalise=shapes.normalise,
            parts=self.parts,
        )
        with_parts = settings.task == "parts"
        self.training = ShapeSamples(*training, shapes, self.note, parts=with_parts)
        self.validation = ShapeSamples(*validation, shapes, self.note, parts=with_parts)

    def build_model(self) -> nn.Module:
        settings, kinds = self.settings, len(self.note.classes)
        sizes: dict[str, Any] = {"num_classes": kinds}
        if settings.task == "parts":
            sizes = {"num_classes": 1 + max(part for parts in self.parts for part in parts), "num_categories": kinds}
        model = create_model(settings.model, **(sizes | settings.options))
        if settings.weights:
            start_from(model, settings.weights)
        return model

    def training_data(self) -> TrainingDataset:
        return self.training

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        logits = self._logits(model, batch)
        target = batch["parts"] if self.parts else batch["label"]
        return {"cross_entropy": smooth_loss(logits, target, self.settings.shapes.smoothing)}

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """Accuracy of classes, or IoU of parts, over the validation shapes, without voting. Every process measures all of them."""
        batches = list(self._validated(model, device))
        labels = np.concatenate([batch["label"].numpy() for batch, _ in batches])
        logits = np.concatenate([found.numpy() for _, found in batches])
        if not self.parts:
            scores = classification_scores(logits.argmax(1), labels, len(self.note.classes))
            return {"oa": scores["oa"], "macc": scores["macc"]}
        truth = np.concatenate([batch["parts"].numpy() for batch, _ in batches])
        means = mean_ious(shape_ious(limit_to_parts(logits, labels, self.parts), truth, labels, self.parts), labels)
        return {"instance_miou": means["instance_miou"], "class_miou": means["class_miou"]}

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """One sheet of validation shapes with what they are and what was found."""
        from PIL import Image

        from vsuite.pointcloud.viewer.sheet import shape_sheet

        count = min(self.settings.validation.pictures, len(self.validation))
        if not count or self.parts:
            return []
        samples = [self.validation.sample(i * len(self.validation) // count, None) for i in range(count)]
        found = model(torch.stack([sample["points"] for sample in samples]).to(device)).argmax(1).tolist()
        names = [f"{self.note.classes[int(s['label'])]}: {self.note.classes[f]}" for s, f in zip(samples, found, strict=True)]
        path = folder / "shapes.png"
        with atomic_path(path) as temporary:
            Image.fromarray(shape_sheet([sample["points"].numpy() for sample in samples], names)).save(temporary)
        return [path]

    def metadata(self) -> dict[str, Any]:
        return {NOTE: self.note.model_dump(), "recipe": self.settings.name}

    def _validated(self, model: nn.Module, device: torch.device) -> Any:
        for start in range(0, len(self.validation), BATCH):
            samples = [self.validation.sample(i, None) for i in range(start, min(start + BATCH, len(self.validation)))]
            batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
            yield batch, self._logits(model, {name: value.to(device) for name, value in batch.items()}).float().cpu()

    def _logits(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return model(batch["points"], batch["label"]) if self.parts else model(batch["points"])
