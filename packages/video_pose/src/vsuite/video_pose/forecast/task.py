"""Training a model of video prediction: clips as samples, and what the training loop asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vsuite.core import create_model
from vsuite.core.training import TrainingDataset
from vsuite.core.training.start import start_from
from vsuite.video_pose.forecast.clips import Clip, Clips
from vsuite.video_pose.forecast.data import ForecastData, held_out, read_data
from vsuite.video_pose.forecast.figures import Figures
from vsuite.video_pose.forecast.note import Note
from vsuite.video_pose.notes import NOTE
from vsuite.video_pose.outcome import evenly
from vsuite.video_pose.render.strips import write_strip
from vsuite.video_pose.settings import RunSettings

BATCH = 8  # clips a call of the network in validation


def make_task(settings: RunSettings) -> tuple[ForecastTask, str]:
    """The task of a run, with its data read, and a line about them.

    Raises:
        InputError: for data that cannot be used.
    """
    data = read_data(settings.data, settings.forecast)
    training, validation = held_out(data, settings.validation.fraction, settings.validation.most)
    task = ForecastTask(settings, data, training, validation)
    task.check_sizes()
    total, *frame = training.shape
    size = " x ".join(map(str, frame))
    about = f"{data.layout}: {total // 2} frames of {size} to observe, as many to predict; {len(training)} clips to train on, "
    return task, about + f"{len(validation)} to validate on"


class ForecastSamples:
    """Training samples; see `vsuite.core.training.task.TrainingDataset`."""

    def __init__(self, clips: Clips) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        """Observed frames and those that follow, T, C, H, W each."""
        observed, later = halves(self.clips.clip(index, rng))
        return {"observed": torch.from_numpy(observed), "later": torch.from_numpy(later)}


def halves(clip: Clip) -> tuple[Clip, Clip]:
    """What a clip shows first, and what comes then."""
    middle = len(clip) // 2
    return np.ascontiguousarray(clip[:middle], np.float32), np.ascontiguousarray(clip[middle:], np.float32)


class ForecastTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, data: ForecastData, training: Clips, validation: Clips) -> None:
        self.settings, self.training, self.validation = settings, training, validation
        total, channels, height, width = training.shape
        chosen = settings.forecast
        self.note = Note(
            layout=data.layout,
            colours=chosen.colours,
            stride=chosen.stride,
            digits=chosen.digits,
            variable=chosen.variable,
            years=chosen.years,
            frames=total // 2,
            channels=channels,
            height=height,
            width=width,
            mean=data.mean,
            std=data.std,
        )

    def build_model(self) -> nn.Module:
        model = self._new_model()
        if self.settings.weights:
            start_from(model, self.settings.weights)
        return model

    def check_sizes(self) -> None:
        """Raises `InputError` where the model cannot take frames of these sizes; computes nothing."""
        with torch.device("meta"), torch.no_grad():
            self._new_model()(torch.empty(1, self.note.frames, *self.note.frame))

    def _new_model(self) -> nn.Module:
        sizes = {"num_frames": self.note.frames, "in_channels": self.note.channels}
        return create_model(self.settings.model, **(sizes | self.settings.options))

    def training_data(self) -> TrainingDataset:
        return ForecastSamples(self.training)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"mse": (model(batch["observed"]).float() - batch["later"]).square().mean()}

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """OpenSTL's figures over the validation clips. Every process measures all of them."""
        figures = Figures(self.note)
        for predicted, later in self._validated(model, device):
            figures.add(predicted, later)
        return figures.means()

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """A strip of each of some validation clips."""
        paths = []
        for number, place in enumerate(evenly(len(self.validation), self.settings.validation.pictures)):
            observed, later = halves(self.validation.clip(place, None))
            predicted = model(torch.from_numpy(observed)[None].to(device))[0].float().cpu().numpy()
            paths.append(write_strip(folder / f"clip_{number}.png", observed, predicted, later))
        return paths

    def metadata(self) -> dict[str, Any]:
        return {NOTE: self.note.model_dump(), "recipe": self.settings.name}

    def _validated(self, model: nn.Module, device: torch.device) -> Iterator[tuple[Clip, Clip]]:
        for start in range(0, len(self.validation), BATCH):
            clips = [halves(self.validation.clip(i, None)) for i in range(start, min(start + BATCH, len(self.validation)))]
            observed = torch.from_numpy(np.stack([clip[0] for clip in clips])).to(device)
            yield model(observed).float().cpu().numpy(), np.stack([clip[1] for clip in clips])
