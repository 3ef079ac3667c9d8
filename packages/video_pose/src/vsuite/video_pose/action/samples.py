"""Clips as tensors: for training, drawn at random; for testing, always the same."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vsuite.core.errors import InputError
from vsuite.video_pose.action.clips import Video, augmented, draw_frames, placed, prepared, surest, test_frames
from vsuite.video_pose.action.film import cut, drawn_square, square_of
from vsuite.video_pose.action.settings import ActionSettings, AugmentSettings, ClipSettings
from vsuite.video_pose.data.videos import read_frames, video_facts
from vsuite.video_pose.models.deformable3d import PoseTransformer, RGBPoseTransformer
from vsuite.video_pose.models.lmuformer import LMUFormer
from vsuite.video_pose.skeletons import Skeleton

Form = Literal["poses", "film", "sequence"]
"""What a model takes: joints with scores; a film with joints; or joints as one sequence of numbers."""


def form_of(model: nn.Module) -> Form:
    """What a model for actions takes."""
    if isinstance(model, LMUFormer):
        return "sequence"
    if isinstance(model, RGBPoseTransformer):
        return "film"
    if isinstance(model, PoseTransformer):
        return "poses"
    raise InputError(f"{type(model).__name__} is no model for actions")


def sizes_of(form: Form, clip: ClipSettings, layout: Skeleton) -> dict[str, int]:
    """Options of a model that follow from the data."""
    if form == "sequence":
        return {"in_channels": clip.people * layout.num_joints * clip.dimensions}
    return {"num_joints": layout.num_joints} | ({"in_channels": clip.dimensions} if form == "poses" else {})


def check_form(form: Form, clip: ClipSettings) -> None:
    """Raises `InputError` where a model cannot have clips in these coordinates."""
    if form == "film" and clip.coordinates != "people":
        raise InputError(f"a model of RGB and poses takes the coordinates 'people'; got {clip.coordinates!r}")


def as_tensors(form: Form, joints: NDArray[np.float32], scores: NDArray[np.float32]) -> dict[str, Tensor]:
    """A placed clip as one sample: "joints" M, T, J, C and "scores" M, T, J, or "sequence" T, M J C."""
    if form == "sequence":
        return {"sequence": torch.from_numpy(np.ascontiguousarray(joints.transpose(1, 0, 2, 3).reshape(joints.shape[1], -1)))}
    return {"joints": torch.from_numpy(np.ascontiguousarray(joints)), "scores": torch.from_numpy(np.ascontiguousarray(scores))}


def run_model(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Scores before the softmax: B, K."""
    if "sequence" in batch:
        return model(batch["sequence"])
    given = (batch["joints"], batch["scores"])
    return model(batch["film"], *given) if "film" in batch else model(*given)


def cut_clip(
    video: Video, frames: NDArray[np.int64], form: Form, clip: ClipSettings, layout: Skeleton, *, change: AugmentSettings | None = None,
    rng: np.random.Generator | None = None,
) -> dict[str, Tensor]:  # fmt: skip
    """One clip of a prepared video, changed at random where `change` and `rng` are given."""
    if form == "film":
        return _cut_film(video, frames, clip, layout, change, rng)
    joints, scores = placed(video, frames, clip, layout)
    if change is not None and rng is not None:
        joints, scores = augmented(joints, scores, clip, change, layout, rng)
    return as_tensors(form, joints, scores)


def _cut_film(
    video: Video,
    frames: NDArray[np.int64],
    clip: ClipSettings,
    layout: Skeleton,
    change: AugmentSettings | None,
    rng: np.random.Generator | None,
) -> dict[str, Tensor]:
    if video.film is None:
        raise InputError(f"{video.name}: has no film, and the model looks at one")
    pictures = read_frames(video.film, frames)
    chosen = surest(video, clip.people)
    joints, scores = chosen.joints[:, frames].astype(np.float32), chosen.scores[:, frames].astype(np.float32)
    square = square_of(joints, scores, pictures.shape[1:3])
    if change is not None and rng is not None:
        square = drawn_square(square, change.crop, rng)
    film, joints = cut(pictures, joints, square, clip.size)
    if change is not None and rng is not None and change.mirror and rng.random() < 0.5:
        film, joints = film[..., ::-1], joints[..., layout.mirror, :]
        joints[..., 0] = clip.size - 1 - joints[..., 0]
        scores = scores[..., layout.mirror]
    joints = np.where(scores[..., None] > 0, joints, 0)
    return {"film": torch.from_numpy(np.ascontiguousarray(film)), **as_tensors("film", joints, scores)}


def check_film(video: Video) -> None:
    """Raises `InputError` unless the video's film decodes and has as many frames as there are poses."""
    if video.film is None:
        raise InputError(f"{video.name}: has no film, and the model looks at one")
    count = video_facts(video.film).num_frames
    if count != video.num_frames:
        raise InputError(f"{video.film}: has {count} frames, but there are poses for {video.num_frames}")


class TrainingClips:
    """Training samples; see `vsuite.core.training.task.TrainingDataset`.

    One epoch draws as many clips as the videos hold windows; with `balanced` classes take turns, and so do the videos of a class.
    """

    def __init__(self, videos: Sequence[Video], settings: ActionSettings, form: Form, layout: Skeleton) -> None:
        self.settings, self.form, self.layout = settings, form, layout
        self.videos = [prepared(video, settings.clip) for video in videos]
        labels = sorted({video.label for video in videos})
        self.by_class = [[video for video in self.videos if video.label == label] for label in labels]
        window = settings.clip.window
        self.length = sum(1 if window is None else max(1, 2 * video.num_frames // window) for video in self.videos)

    def __len__(self) -> int:
        return self.length

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        video = self._drawn(index, rng)
        frames = draw_frames(video.num_frames, self.settings.clip, self.settings.augment, rng)
        found = cut_clip(video, frames, self.form, self.settings.clip, self.layout, change=self.settings.augment, rng=rng)
        return found | {"label": torch.tensor(video.label)}

    def _drawn(self, index: int, rng: np.random.Generator) -> Video:
        if self.settings.balanced:
            group = self.by_class[index % len(self.by_class)]
            return group[rng.integers(len(group))]
        return self.videos[index % len(self.videos)]


class TestClips:
    """All clips of some videos, in order.

    Attributes:
        labels: of the clips. owners: the number of each clip's video.
    """

    __test__ = False  # no test case for pytest

    def __init__(self, videos: Sequence[Video], clip: ClipSettings, form: Form, layout: Skeleton, *, num_clips: int = 1) -> None:
        self.clip, self.form, self.layout = clip, form, layout
        self.videos = [prepared(video, clip) for video in videos]
        self.places = [
            (number, frames) for number, video in enumerate(self.videos) for frames in test_frames(video.num_frames, clip, num_clips)
        ]
        self.owners = np.array([number for number, _ in self.places])
        self.labels = np.array([self.videos[number].label for number in self.owners])

    def __len__(self) -> int:
        return len(self.places)

    def batches(self, size: int) -> list[range]:
        """Numbers of clips, `size` at a time."""
        return [range(start, min(start + size, len(self))) for start in range(0, len(self), size)]

    def batch(self, numbers: Sequence[int]) -> dict[str, Tensor]:
        """Some clips, stacked."""
        samples = [cut_clip(self.videos[self.places[i][0]], self.places[i][1], self.form, self.clip, self.layout) for i in numbers]
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
