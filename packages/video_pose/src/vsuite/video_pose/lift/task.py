"""Training a lifter: what the training loop asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vsuite.core import create_model
from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.core.training import TrainingDataset
from vsuite.core.training.start import start_from
from vsuite.video_pose.lift.data import LiftData, read_training
from vsuite.video_pose.lift.videos import Video
from vsuite.video_pose.metrics.pose import evaluate_poses
from vsuite.video_pose.models.lifter import Lifter
from vsuite.video_pose.notes import NOTE
from vsuite.video_pose.outcome import evenly
from vsuite.video_pose.settings import RunSettings
from vsuite.video_pose.skeletons import skeleton


class LiftTask:
    """What the training loop needs to know; see `vsuite.core.training.task.TrainingTask`."""

    def __init__(self, settings: RunSettings, data: LiftData) -> None:
        self.settings, self.data = settings, data
        self.layout = skeleton(data.note.layout)
        self.validation = [data.validation[i] for i in evenly(len(data.validation), settings.validation.most)]

    def build_model(self) -> nn.Module:
        model = _build(self.settings)
        if self.settings.weights:
            start_from(model, self.settings.weights)
        return model

    def training_data(self) -> TrainingDataset:
        return self.data.training

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """MPJPE of the windows' middle frames, metres."""
        return {"mpjpe": torch.linalg.vector_norm(model(batch["poses_2d"]) - batch["pose_3d"], dim=-1).mean()}

    def validate(self, model: nn.Module, device: torch.device, rank: int, world_size: int) -> dict[str, float]:
        """MPJPE and P-MPJPE in millimetres for each noise of the 2D joints, with the mirrored copy; every process measures everything."""
        found: dict[str, float] = {}
        for pixels in self.settings.lift.validation_noise:
            report = evaluate_poses(
                (v.name, self._lift(model, device, v, pixels, seed), v.poses_3d) for seed, v in enumerate(self.validation)
            )
            found |= {f"{name}/{pixels:g}px": report.average[name] for name in ("mpjpe", "p_mpjpe")}
        first = [value for name, value in found.items() if name.startswith("mpjpe/")]
        return {"mpjpe": sum(first) / len(first), **found}

    def pictures(self, model: nn.Module, device: torch.device, folder: Path) -> list[Path]:
        """A sheet: what went in, what came out, and the truth, of middle frames of validation videos."""
        if not self.settings.validation.pictures:
            return []
        pixels = self.settings.lift.validation_noise[-1]
        rows = []
        for number in evenly(len(self.validation), self.settings.validation.pictures):
            video = self.validation[number].with_noise(pixels, number)
            middle = len(video.poses_2d) // 2
            rows.append((video.name, video.poses_2d[middle], self._lift(model, device, video, 0, 0)[middle], video.poses_3d[middle]))
        from vsuite.video_pose.lift.pictures import draw_sheet

        path = folder / "poses.png"
        with atomic_path(path) as temporary:
            draw_sheet(rows, self.layout, temporary)
        return [path]

    def metadata(self) -> dict[str, Any]:
        return {NOTE: self.data.note.model_dump(), "recipe": self.settings.name}

    def _lift(self, model: nn.Module, device: torch.device, video: Video, pixels: float, seed: int) -> Any:
        assert isinstance(model, Lifter)
        seen = torch.from_numpy(video.with_noise(pixels, seed).poses_2d).to(device)
        return model.lift(seen, flip=self.layout, batch_size=256).float().cpu().numpy()


def make_task(settings: RunSettings) -> tuple[LiftTask, str]:
    """The task of a run, with its data read, and a line about them."""
    num_frames = _build(settings).num_frames  # what a model is called with is known only once it is built
    data = read_training(settings.data, settings.lift, settings.validation.fraction, num_frames)
    return LiftTask(settings, data), data.about


def _build(settings: RunSettings) -> Lifter:
    model = create_model(settings.model, **settings.options)
    if not isinstance(model, Lifter):
        raise InputError(f"{settings.model}: does not lift poses")
    return model
