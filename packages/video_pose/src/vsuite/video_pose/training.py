"""Training a model of videos and poses: a data set and a recipe in, a run folder out."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vsuite.core import model_info
from vsuite.core.devices import pick_device
from vsuite.core.errors import InputError
from vsuite.core.training import TrainingResult, TrainingTask
from vsuite.core.training import train as run_training
from vsuite.core.training.processes import first_alone, process_group
from vsuite.core.training.recipes import resolve
from vsuite.video_pose.settings import RunSettings, load_recipe

DEFAULT_RECIPE = "convformer_mocap"
# What `ModelInfo.task` calls the models of each task.
MODEL_TASKS = {"lift": "lifting", "action": "action", "forecast": "forecast", "keywords": "keywords"}


def resolve_settings(
    *,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    **given: Any,
) -> RunSettings:
    """The settings of a run, from a recipe or a settings file and what overrides it.

    Args:
        data: folder or file of the data set; None takes the settings file's.
        recipe: name or file of a recipe; None is "convformer_mocap".
        config: a run's `settings.yaml`, in place of a recipe.
        overrides: "training.steps=1000" and the like.
        given: further fields of `RunSettings`; None leaves one as it is.

    Raises:
        InputError: for unknown settings (naming the nearest), wrong values, and where no data are named.
    """
    return resolve(
        RunSettings,
        load_recipe,
        recipe=recipe,
        default_recipe=DEFAULT_RECIPE,
        config=config,
        overrides=overrides,
        given={"data": None if data is None else str(data), **given},
        nothing_named="no data are named: give the file or folder of a data set (--data)",
    )


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
    out = Path(out)
    with process_group(pick_device(device)):
        if (out / "settings.yaml").exists() and not resume:
            raise InputError(f"{out}: holds a run already; resume it (--resume), or train into another folder")
        info = model_info(settings.model)
        if info.task != MODEL_TASKS[settings.task]:
            raise InputError(
                f"{info.name} is a model for {info.task}; the task {settings.task!r} needs one for {MODEL_TASKS[settings.task]}"
            )
        task, about = make_task(settings)
        first_alone(lambda: say(about))
        return run_training(task, settings.training, out, device=device, resume=resume, resolved=settings)


def make_task(settings: RunSettings) -> tuple[TrainingTask, str]:
    """The task of a run, with its data read, and a line about them: what `make_task` of the task's own module makes."""
    module = importlib.import_module(f"vsuite.video_pose.{settings.task}.task")  # only what is needed is imported
    return module.make_task(settings)
