"""Learning-rate schedules: the rate of a step from its number alone, so that there is no state to keep."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

from vsuite.core.errors import InputError, unknown

if TYPE_CHECKING:
    from vsuite.core.training.settings import TrainingSettings

Schedule = Callable[[int, int, "TrainingSettings"], float]

_SCHEDULES: dict[str, Schedule] = {}


def register_schedule(name: str) -> Callable[[Schedule], Schedule]:
    """Registers the decorated `function(step, total_steps, settings) -> learning rate` under a name.

    `step` counts from 0 to `total_steps - 1`. A second registration of a name raises.
    """

    def register(schedule: Schedule) -> Schedule:
        if name in _SCHEDULES:
            raise InputError(f"schedule {name!r} is registered twice")
        _SCHEDULES[name] = schedule
        return schedule

    return register


def get_schedule(name: str) -> Schedule:
    """The schedule of this name; raises `InputError` that names the nearest for an unknown one."""
    if name not in _SCHEDULES:
        raise unknown("schedule", name, _SCHEDULES)
    return _SCHEDULES[name]


def _cosine(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(max(fraction, 0.0), 1.0))) / 2


def _warmup(total_steps: int, settings: TrainingSettings) -> int:
    """Steps of warm-up: half the run at the most, since a short one would otherwise end before it has begun to learn."""
    return min(settings.warmup_steps, total_steps // 2)


@register_schedule("cosine")
def cosine(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up over `warmup_steps`, then half a cosine that reaches `min_learning_rate` at the last step."""
    warmup = _warmup(total_steps, settings)
    if step < warmup:
        return settings.learning_rate * (step + 1) / (warmup + 1)
    return _cosine(settings.learning_rate, settings.min_learning_rate, (step - warmup) / max(1, total_steps - 1 - warmup))


@register_schedule("cosine_from_zero")
def cosine_from_zero(step: float, total_steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up from zero, then half a cosine that would reach `min_learning_rate` one step after the last.

    It is how masked autoencoders, and what is fine-tuned from them, were published: a rate that follows the fraction of the
    epochs that has passed. The first step changes nothing.
    """
    warmup = _warmup(total_steps, settings)
    if step < warmup:
        return settings.learning_rate * step / warmup
    return _cosine(settings.learning_rate, settings.min_learning_rate, (step - warmup) / (total_steps - warmup))


@register_schedule("one_cycle")
def one_cycle(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """Smith's one-cycle policy: a cosine up from a 25th of the peak, then down to `min_learning_rate`.

    The rise takes `warmup_steps`, or 30% of the run where that is 0.
    """
    peak = settings.learning_rate
    top = (_warmup(total_steps, settings) or 0.3 * total_steps) - 1
    if step < top:
        return _cosine(peak / 25, peak, step / top)
    return _cosine(peak, settings.min_learning_rate, (step - top) / max(1.0, total_steps - 1 - top))


@register_schedule("constant")
def constant(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """Linear warm-up over `warmup_steps`, then `learning_rate`."""
    return settings.learning_rate * min(1.0, (step + 1) / (_warmup(total_steps, settings) + 1))
