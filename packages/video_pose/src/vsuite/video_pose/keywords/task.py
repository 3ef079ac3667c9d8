"""Training a model that spots words."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import create_model
from vsuite.core.training import TrainingDataset
from vsuite.core.training.start import start_from
from vsuite.video_pose.data.speech import Clip
from vsuite.video_pose.keywords.data import WordSamples, features_of, find_words, read_recordings, read_word
from vsuite.video_pose.keywords.settings import KeywordSettings
from vsuite.video_pose.metrics.actions import confusion, mean_class_accuracy, top_k_accuracy
from vsuite.video_pose.notes import NOTE
from vsuite.video_pose.outcome import evenly
from vsuite.video_pose.settings import RunSettings


class Note(BaseModel):
    """What weights for words say beside themselves.

    Attributes:
        words: in the order of the outputs.
        frames, mel_bins: of a clip; see `KeywordSettings`.
        fraction: of the speakers that were held out, where the data set has no lists.
    """

    model_config = ConfigDict(extra="forbid")

    task: Literal["keywords"] = "keywords"
    words: list[str] = Field(min_length=2)
    frames: int = Field(ge=1)
    mel_bins: int = Field(ge=1)
    fraction: float = 0.1

    @property
    def settings(self) -> KeywordSettings:
        """What features depend on."""
        return KeywordSettings(words=self.words, frames=self.frames, mel_bins=self.mel_bins)


class KeywordTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, words: list[str], training: Sequence[Clip], held_out: Sequence[Clip]) -> None:
        self.settings, keywords = settings, settings.keywords
        self.note = Note(words=words, frames=keywords.frames, mel_bins=keywords.mel_bins, fraction=settings.validation.fraction)
        self.training = WordSamples(training, len(words), keywords)
        self.held_out = list(held_out)
        self.labels = np.array([clip.label for clip in held_out])
        self.scores = np.zeros((0, len(words)), np.float32)  # of the last validation

    def build_model(self) -> nn.Module:
        sizes = {"num_classes": len(self.note.words), "in_channels": self.note.mel_bins}
        model = create_model(self.settings.model, **(sizes | self.settings.options))
        if self.settings.weights:
            start_from(model, self.settings.weights)
        return model

    def training_data(self) -> TrainingDataset:
        return self.training

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"binary_cross_entropy": F.binary_cross_entropy_with_logits(model(batch["features"]).float(), batch["target"])}

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """Accuracy, and the mean over words of the share found. Every process measures all recordings."""
        size = self.settings.training.batch_size
        found = [
            score_words(model, [clip.path for clip in self.held_out[start : start + size]], self.note.settings, device)
            for start in range(0, len(self.held_out), size)
        ]
        self.scores = np.concatenate(found)
        targets = torch.eye(len(self.note.words))[torch.from_numpy(self.labels)]
        loss = F.binary_cross_entropy_with_logits(torch.from_numpy(self.scores), targets)
        return {"loss": float(loss), **figures(self.scores, self.labels)}

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """The confusion of the last validation."""
        from vsuite.core.images.pictures import confusion_picture

        if not len(self.scores) or not self.settings.validation.pictures:
            return []
        path = folder / "confusion.png"
        confusion_picture(confusion(self.scores, self.labels), self.note.words, path)
        return [path]

    def metadata(self) -> dict[str, Any]:
        return {NOTE: self.note.model_dump(), "recipe": self.settings.name}


def make_task(settings: RunSettings) -> tuple[KeywordTask, str]:
    """The task of a run, with its recordings found, and a line about them."""
    keywords = settings.keywords
    words = keywords.words or find_words(settings.data)
    fraction = settings.validation.fraction
    training = read_recordings(settings.data, "train", words=words, fraction=fraction)
    held_out = read_recordings(settings.data, "validation", words=words, fraction=fraction)
    held_out = [held_out[i] for i in evenly(len(held_out), settings.validation.most)]
    for clip in (training[0], held_out[0]):
        read_word(clip.path)
    shown = ", ".join(words[:10]) + (", ..." if len(words) > 10 else "")
    about = f"{len(training)} recordings to train on, {len(held_out)} to validate on; {len(words)} words: {shown}"
    return KeywordTask(settings, words, training, held_out), about


@torch.inference_mode()
def score_words(model: nn.Module, paths: Sequence[Path], settings: KeywordSettings, device: torch.device) -> NDArray[np.float32]:
    """Scores of recordings before the sigmoid: N, words."""
    features = np.stack([features_of(read_word(path), settings) for path in paths])
    return model(torch.from_numpy(features).to(device)).float().cpu().numpy()


def figures(scores: NDArray[np.floating], labels: NDArray[np.integer]) -> dict[str, float]:
    """Accuracy and balanced accuracy of the word with the highest score."""
    return {"accuracy": top_k_accuracy(scores, labels), "balanced_accuracy": mean_class_accuracy(scores, labels, absent="skip")}
