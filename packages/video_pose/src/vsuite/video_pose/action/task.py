"""Training a model that tells actions apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from vsuite.core import create_model
from vsuite.core.errors import InputError
from vsuite.core.training import TrainingDataset
from vsuite.core.training.start import start_from
from vsuite.video_pose.action.clips import check_video
from vsuite.video_pose.action.data import Divided, divide, read_videos
from vsuite.video_pose.action.samples import Form, TestClips, TrainingClips, check_film, check_form, form_of, run_model, sizes_of
from vsuite.video_pose.action.settings import ClipSettings
from vsuite.video_pose.metrics.actions import confusion, mean_class_accuracy, top_k_accuracy
from vsuite.video_pose.models.deformable3d.variants import windows_for
from vsuite.video_pose.notes import NOTE
from vsuite.video_pose.outcome import evenly
from vsuite.video_pose.settings import RunSettings
from vsuite.video_pose.skeletons import skeleton


class Note(BaseModel):
    """What weights for actions say beside themselves.

    Attributes:
        classes: names, in the order of the outputs.
        layout: of the joints.
        clip: how videos become what goes in.
        split, fraction, fold: which videos were held out, so that an evaluation takes the same; see `data.divide`.
    """

    model_config = ConfigDict(extra="forbid")

    task: Literal["action"] = "action"
    classes: list[str] = Field(min_length=2)
    layout: str
    clip: ClipSettings
    split: str | None = None
    fraction: float = 0.1
    fold: int = 0


class ActionTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, divided: Divided, form: Form) -> None:
        self.settings, action = settings, settings.action
        self.note = Note(
            classes=divided.classes,
            layout=action.layout,
            clip=action.clip,
            split=action.split,
            fraction=settings.validation.fraction,
            fold=action.fold,
        )
        layout = skeleton(action.layout)
        self.form = form
        self.layout = layout
        self.training = TrainingClips(divided.training, action, form, layout)
        self.validation = TestClips(divided.held_out, action.clip, form, layout, num_clips=action.test_clips)
        self.scores = np.zeros((0, len(divided.classes)), np.float32)  # of the last validation

    def build_model(self) -> nn.Module:
        sizes = sizes_of(self.form, self.settings.action.clip, self.layout)
        if self.form != "sequence":
            sizes |= windows_for(self.layout.num_joints)
        model = create_model(self.settings.model, num_classes=len(self.note.classes), **(sizes | self.settings.options))
        if self.settings.weights:
            start_from(model, self.settings.weights)
        return model

    def training_data(self) -> TrainingDataset:
        return self.training

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {
            "cross_entropy": F.cross_entropy(
                run_model(model, batch).float(), batch["label"], label_smoothing=self.settings.action.smoothing
            )
        }

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """See `figures`, over the clips of the held-out videos. Every process measures all of them."""
        self.scores = score_clips(model, self.validation, device, self.settings.training.batch_size)
        likely = torch.from_numpy(self.scores).log_softmax(1)[torch.arange(len(self.scores)), torch.from_numpy(self.validation.labels)]
        return {"loss": -float(likely.mean()), **figures(self.scores, self.validation.labels, self.note.classes)}

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """The confusion of the last validation."""
        from vsuite.core.images.pictures import confusion_picture

        if not len(self.scores) or not self.settings.validation.pictures:
            return []
        path = folder / "confusion.png"
        confusion_picture(confusion(self.scores, self.validation.labels), self.note.classes, path)
        return [path]

    def metadata(self) -> dict[str, Any]:
        return {NOTE: self.note.model_dump(), "recipe": self.settings.name}


def make_task(settings: RunSettings) -> tuple[ActionTask, str]:
    """The task of a run, with its data read and checked, and a line about them."""
    action, clip = settings.action, settings.action.clip
    layout = skeleton(action.layout)
    with torch.device("meta"):
        form = form_of(create_model(settings.model))
    check_form(form, clip)
    found = read_videos(settings.data, layout, clip, films=action.films)
    divided = divide(found, action, settings.validation.fraction)
    for video in [*divided.training, *divided.held_out]:
        check_video(video, layout, clip, needs_people=form != "film")
        if form == "film" and video.film is None:
            raise InputError(f"{video.name}: has no film, and {settings.model} looks at one: action.films names their folder")
    held_out = [divided.held_out[i] for i in evenly(len(divided.held_out), settings.validation.most)]
    divided = replace(divided, held_out=held_out)
    if form == "film":
        check_film(divided.training[0])
    task = ActionTask(settings, divided, form)
    about = f"{len(divided.training)} videos to train on, {len(divided.held_out)} ({len(task.validation)} clips) to validate on"
    return task, f"{about}; {divided.about}; {len(divided.classes)} classes: {_some(divided.classes)}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


@torch.inference_mode()
def score_clips(model: nn.Module, clips: TestClips, device: torch.device, batch_size: int) -> NDArray[np.float32]:
    """Scores of all clips before the softmax: N, K."""
    found = []
    for numbers in clips.batches(batch_size):
        batch = {name: value.to(device) for name, value in clips.batch(numbers).items()}
        found.append(run_model(model, batch).float().cpu().numpy())
    return np.concatenate(found)


def figures(scores: NDArray[np.floating], labels: NDArray[np.integer], classes: Sequence[str]) -> dict[str, float]:
    """Balanced accuracy (the mean over classes of the share found), top-1, top-5 from six classes on, and "recall/<class>"."""
    found = {"balanced_accuracy": mean_class_accuracy(scores, labels, absent="skip"), "top1": top_k_accuracy(scores, labels)}
    if len(classes) > 5:
        found["top5"] = top_k_accuracy(scores, labels, 5)
    table = confusion(scores, labels)
    counts = table.sum(1)
    return found | {f"recall/{name}": float(table[i, i] / counts[i]) for i, name in enumerate(classes) if counts[i]}
