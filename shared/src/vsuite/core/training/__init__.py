"""Training: a task and its settings in, a run folder out.

    result = train(task, TrainingSettings(steps=1000, batch_size=4), Path("runs/first"))

A run folder holds `settings.yaml` (full and resolved), `metrics.jsonl` (one JSON object a line), `checkpoints/last.pth`
(everything a resumed run needs), `checkpoints/best.safetensors` (the weights to use), `pictures/` and `report.html`.
Nothing heavy is imported before the first call.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vsuite.core.training.report import write_report
    from vsuite.core.training.runner import train
    from vsuite.core.training.schedules import register_schedule
    from vsuite.core.training.settings import TrainingSettings, apply_overrides, check_settings, load_settings, write_settings
    from vsuite.core.training.task import TrainingDataset, TrainingResult, TrainingTask

_LAZY = {
    "TrainingDataset": "task",
    "TrainingResult": "task",
    "TrainingSettings": "settings",
    "TrainingTask": "task",
    "apply_overrides": "settings",
    "check_settings": "settings",
    "load_settings": "settings",
    "register_schedule": "schedules",
    "train": "runner",
    "write_report": "report",
    "write_settings": "settings",
}

__all__ = [
    "TrainingDataset",
    "TrainingResult",
    "TrainingSettings",
    "TrainingTask",
    "apply_overrides",
    "check_settings",
    "load_settings",
    "register_schedule",
    "train",
    "write_report",
    "write_settings",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
