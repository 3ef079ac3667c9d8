"""What the tasks' predictions and evaluations have in common."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Summary:
    """What became of a batch: a line for each result, and what is wrong with the inputs that failed."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
