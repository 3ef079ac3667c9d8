"""What a run keeps track of between its steps: the losses since the last line of the log, and the best validation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from vsuite.core.errors import unknown
from vsuite.core.training.processes import mean_over_processes


@dataclass
class LossWindow:
    """Losses of the passes since they were last logged, kept on the device so that no step waits for them."""

    passes: list[dict[str, Tensor]] = field(default_factory=list)

    def by_pass(self) -> tuple[list[str], Tensor]:
        """Names, and values (passes, names) averaged over the processes, which must all call this."""
        names = list(self.passes[-1])
        values = torch.stack([torch.stack([losses[name].float() for name in names]) for losses in self.passes])
        return names, mean_over_processes(values).cpu()

    def means(self) -> dict[str, float]:
        """The mean of each over the window, which is emptied."""
        names, values = self.by_pass()
        self.passes = []
        return dict(zip(names, values.mean(dim=0).tolist(), strict=True))

    def first_not_finite(self) -> tuple[int, str] | None:
        """How many passes ago the first loss was not finite, and what it was; None if all are well."""
        if not self.passes:
            return None
        names, values = self.by_pass()
        bad = (~values.isfinite()).any(dim=1).nonzero()
        if not len(bad):
            return None
        index = int(bad[0])
        shown = ", ".join(f"{name} {value:.4g}" for name, value in zip(names, values[index].tolist(), strict=True))
        return len(values) - 1 - index, shown

    def state(self) -> list[dict[str, Tensor]]:
        return [{name: value.cpu() for name, value in losses.items()} for losses in self.passes]


@dataclass
class Best:
    """The best validation so far.

    Attributes:
        metric, mode: what is compared, and whether "max" or "min" is better; without a metric the newest is the best.
        step: of the best, -1 before the first; metrics: all of them at that step; stale: validations since.
    """

    metric: str | None
    mode: str
    step: int = -1
    metrics: dict[str, float] = field(default_factory=dict)
    stale: int = 0

    def update(self, step: int, metrics: dict[str, float]) -> bool:
        """Takes in a validation; whether it is the best so far. A value that is not a number is better than none only."""
        if self.metric is None:
            self.step, self.metrics = step, dict(metrics)
            return True
        if self.metric not in metrics:
            raise unknown("validation metric (best_metric)", self.metric, metrics)
        value, best = metrics[self.metric], self.metrics.get(self.metric, math.nan)
        better = value > best if self.mode == "max" else value < best
        if math.isnan(best):
            better = self.step < 0 or not math.isnan(value)
        self.stale = 0 if better else self.stale + 1
        if better:
            self.step, self.metrics = step, dict(metrics)
        return better

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "metrics": self.metrics, "stale": self.stale}

    def load_state(self, state: dict[str, Any]) -> None:
        self.step, self.metrics, self.stale = state["step"], state["metrics"], state["stale"]
