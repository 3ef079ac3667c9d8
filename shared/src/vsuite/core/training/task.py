"""What a domain supplies to be trained, and what it gets back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn


class TrainingDataset(Protocol):
    """The training samples."""

    def __len__(self) -> int: ...

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """One sample, ready to be stacked with others; every sample has the same names and shapes.

        Where shapes differ, the data set has a method `collate` beside this: samples -> batch, in which lists of tensors may stand.

        All randomness (augmentation, cropping) comes from `rng`, which is seeded from (seed, epoch, index). It is
        called in worker processes, so the order of calls means nothing.
        """
        ...


class TrainingTask(Protocol):
    """What a domain supplies."""

    def build_model(self) -> nn.Module:
        """The model on the CPU; called once, after the seed is set."""
        ...

    def training_data(self) -> TrainingDataset: ...

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Named terms (scalars, means over the batch); their sum is minimised.

        `model` is what to call: it may be wrapped for several processes. `batch` is on the model's device. The call
        runs under autocast where the precision asks for it.
        """
        ...

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """Metrics of the whole validation set, gathered over the processes (what rank 0 returns counts).

        `model` is in eval mode, without gradients, averaged where averaging is on. Names with a slash, such as
        "dice/anterior", share a chart with their like in the report.
        """
        ...

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """Writes PNG files for the report into `folder` after a validation, on rank 0 only; may return []."""
        ...

    def metadata(self) -> dict[str, Any]:
        """What to keep inside `best.safetensors` beside the weights; plain JSON values."""
        ...


@dataclass(frozen=True)
class TrainingResult:
    """Where a run ended.

    Attributes:
        folder: the run folder.
        best_path: the weights with the best validation value.
        best_metrics: all validation metrics at that point; best_step: the step.
        steps_done: updates made in total, over all resumptions.
        stopped_early: whether validation stopped improving before the last step.
    """

    folder: Path
    best_path: Path
    best_metrics: dict[str, float]
    best_step: int
    steps_done: int
    stopped_early: bool
