"""Training by a recipe that says which of a package's tasks it is for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from vsuite.core.devices import pick_device
from vsuite.core.errors import InputError
from vsuite.core.registry import model_info
from vsuite.core.training.processes import first_alone, process_group
from vsuite.core.training.runner import train
from vsuite.core.training.settings import refuse_run
from vsuite.core.training.task import TrainingResult, TrainingTask

# The settings of a run: `task`, `model` and `training`, beside what the package needs.
Settings = TypeVar("Settings", bound=Any)


def train_by_recipe(
    settings: Settings,
    out: str | Path,
    make_task: Callable[[Settings], tuple[TrainingTask, str]],
    model_tasks: Mapping[str, str],
    *,
    device: str = "auto",
    resume: bool = False,
    say: Callable[[str], None] = print,
) -> TrainingResult:
    """Trains, and leaves a run folder (see `vsuite.core.training`). Every process of a distributed run calls this.

    Args:
        settings: of the run.
        out: the run folder.
        make_task: reads the data: the task, and a line about them.
        model_tasks: what `ModelInfo.task` calls the models of each task.
        resume: continue the run in `out`.
        say: takes lines about what was understood; never called in other processes than the first.

    Raises:
        InputError: for everything that is wrong with the data or the settings, before training starts.
    """
    out = Path(out)
    with process_group(pick_device(device)):
        first_alone(lambda: refuse_run(out, resume=resume))
        info, wanted = model_info(settings.model), model_tasks[settings.task]
        if info.task != wanted:
            raise InputError(f"{info.name} is a model for {info.task}; the task {settings.task!r} needs one for {wanted}")
        task, about = make_task(settings)
        first_alone(lambda: say(about))
        return train(task, settings.training, out, device=device, resume=resume, resolved=settings)
