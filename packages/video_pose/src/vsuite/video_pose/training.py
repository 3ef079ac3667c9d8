"""Training a model of videos and poses: a data set and a recipe in, a run folder out."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path

from vsuite.core.training import TrainingResult, TrainingTask
from vsuite.core.training.by_recipe import train_by_recipe
from vsuite.video_pose.settings import RECIPES, RunSettings

resolve_settings = RECIPES.resolve
# What `ModelInfo.task` calls the models of each task.
MODEL_TASKS = {"lift": "lifting", "action": "action", "forecast": "forecast", "keywords": "keywords"}


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
    """The task of a run, with its data read, and a line about them: what `make_task` of the task's own module makes."""
    module = importlib.import_module(f"vsuite.video_pose.{settings.task}.task")  # only what is needed is imported
    return module.make_task(settings)
