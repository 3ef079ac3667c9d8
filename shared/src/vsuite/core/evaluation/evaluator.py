"""Collects the metrics of single samples, over as many processes as there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vsuite.core.evaluation.metrics import Metric, create_metric


@dataclass(frozen=True)
class Row:
    """The numbers of one sample: its index in the data set, its name, and column -> value (NaN: not defined)."""

    index: int
    name: str
    values: Mapping[str, float]


@dataclass(frozen=True)
class EvaluationResult:
    """What an evaluation found.

    Attributes:
        rows: one a sample, ordered by index.
        summary: column -> result over all samples.
        counts: column of `summary` -> how many samples entered it.
    """

    rows: list[Row]
    summary: dict[str, float]
    counts: dict[str, int]


class Evaluator:
    """Measures samples one by one and summarises them.

    Under `torch.distributed` each process updates its own evaluator with its own samples; `compute` then gathers all
    of them and returns the same result everywhere. A sample that several processes have seen (samplers repeat some to
    give all processes equally many) counts once: samples are told apart by index.

    Args:
        metrics: metrics, or names of registered ones. Two must not give columns of the same name.
    """

    def __init__(self, metrics: Sequence[Metric | str]) -> None:
        self.metrics = [create_metric(metric) if isinstance(metric, str) else metric for metric in metrics]
        self._samples: dict[int, tuple[str, list[dict[str, float]]]] = {}  # index -> name and one row a metric

    def update(self, index: int, name: str, **sample: Any) -> None:
        """Measures one sample.

        Args:
            index: the sample's index in the whole data set, the same in every process.
            name: what the tables call it.
            sample: what the metrics need, such as `prediction` and `reference`.
        """
        measured = [{column: float(value) for column, value in metric.measure(**sample).items()} for metric in self.metrics]
        columns = [column for row in measured for column in row]
        if len(columns) != len(set(columns)):
            repeated = sorted({column for column in columns if columns.count(column) > 1})
            raise ValueError(f"several metrics give the column {', '.join(repeated)}")
        self._add(int(index), name, measured)

    def _add(self, index: int, name: str, measured: list[dict[str, float]]) -> None:
        known = self._samples.setdefault(index, (name, measured))[0]
        if known != name:  # one of the two would be lost without a word
            raise ValueError(f"the samples {known!r} and {name!r} have the same index {index}")

    def compute(self) -> EvaluationResult:
        """Gathers the samples of all processes and summarises them; every process has to call it."""
        self._gather()
        ordered = sorted(self._samples.items())
        rows = [
            Row(index, name, {column: value for row in measured for column, value in row.items()}) for index, (name, measured) in ordered
        ]
        summary: dict[str, float] = {}
        for position, metric in enumerate(self.metrics):
            summary |= metric.summarise([measured[position] for _, (_, measured) in ordered])
        return EvaluationResult(rows, summary, {column: _count(column, rows) for column in summary})

    def _gather(self) -> None:
        from torch import distributed

        if not (distributed.is_available() and distributed.is_initialized()):
            return
        everything: list[Any] = [None] * distributed.get_world_size()
        distributed.all_gather_object(everything, self._samples)
        self._samples = {}
        for samples in everything:  # the same order everywhere, so that every process keeps the same copy
            for index, (name, measured) in samples.items():
                self._add(index, name, measured)


def _count(column: str, rows: Sequence[Row]) -> int:
    """How many samples entered a result: those with a value in the column of its name, else all."""
    values = [row.values[column] for row in rows if column in row.values]
    return sum(not math.isnan(value) for value in values) if values else len(rows)
