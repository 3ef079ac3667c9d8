"""What a weights file of this package says beside the weights: what goes in, and what comes out."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar, get_args

import pydantic
from torch import nn

from vsuite.core.errors import InputError
from vsuite.core.weights import find_weights, load_published, read_metadata
from vsuite.video_pose.settings import TaskName

NOTE = "video_pose"  # key of the note in a weights file: {"task": ..., and what the task's own note holds}

Note = TypeVar("Note", bound=pydantic.BaseModel)


def task_of(source: str | Path) -> TaskName:
    """What the weights are for.

    Raises:
        InputError: for files that are no weights, or that nothing of this package has saved.
    """
    found = _content(find_weights(source))["task"]
    if found not in get_args(TaskName):
        raise InputError(f"{source}: is for the task {found!r}; this package knows {', '.join(get_args(TaskName))}")
    return found


def load_model(source: str | Path, task: TaskName, note: type[Note]) -> tuple[nn.Module, Note]:
    """The network of a weights file, run folder or name of shipped weights, for inference, and its note.

    Args:
        task: what the weights must be for.
        note: the task's own type of note; it has a field "task".

    Raises:
        InputError: for files that are no weights of this package, and weights for another task.
    """
    path = find_weights(source)
    content = _content(path)
    if content["task"] != task:
        raise InputError(f"{source}: is for the task {content['task']!r}, not {task!r}")
    try:
        return load_published(path).eval(), note.model_validate(content)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: its note on what goes in and out is damaged: {error.errors()[0]['msg']}") from error


def _content(path: Path) -> dict[str, Any]:
    content = read_metadata(path).get(NOTE)
    if not isinstance(content, dict) or "task" not in content:
        raise InputError(f"{path}: does not say what goes in and out; it is no file that `vsuite-pose train` saved")
    return content
