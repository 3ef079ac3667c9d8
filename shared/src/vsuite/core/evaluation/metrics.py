"""What a metric is, and the names under which metrics are registered."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from vsuite.core.errors import InputError, unknown

MetricClass = TypeVar("MetricClass", bound="type[Metric]")


class Metric:
    """Base of all metrics: each sample gives a row of numbers, and the rows are summarised at the end.

    A subclass defines `measure`; `summarise` only where the result is not the mean of the samples (a mean average
    precision, say). NaN means "not defined for this sample": it does not enter the mean.
    """

    def measure(self, *_: Any, **sample: Any) -> dict[str, float]:
        """One sample's row: name of the number -> value, NaN where it is not defined.

        A subclass names the parts of the sample that it needs (`prediction`, `reference`, `spacing`, ...) and takes
        the others with `**_`. The values must be plain numbers, as rows travel between processes.
        """
        raise NotImplementedError

    def summarise(self, rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
        """The result over all samples, ordered by sample index; here the mean of each column without its NaNs."""
        return {column: mean([row[column] for row in rows if column in row]) for column in _columns(rows)}


def mean(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN; NaN if there is none."""
    defined = [value for value in values if not math.isnan(value)]
    return sum(defined) / len(defined) if defined else math.nan


def _columns(rows: Sequence[Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(column for row in rows for column in row))


_METRICS: dict[str, type[Metric]] = {}


def register_metric(name: str) -> Callable[[MetricClass], MetricClass]:
    """Registers the decorated metric under a name; a second registration of a name raises."""

    def register(metric: MetricClass) -> MetricClass:
        if name in _METRICS:
            raise InputError(f"metric {name!r} is registered twice: by {_METRICS[name].__module__} and by {metric.__module__}")
        _METRICS[name] = metric
        return metric

    return register


def list_metrics() -> list[str]:
    """The names of the metrics that the imported packages have registered, sorted."""
    return sorted(_METRICS)


def create_metric(name: str, **options: Any) -> Metric:
    """The metric of that name, built with its own options.

    Raises:
        InputError: naming the nearest, for an unknown name or option.
    """
    if name not in _METRICS:
        raise unknown("metric", name, _METRICS)
    allowed = inspect.signature(_METRICS[name]).parameters
    for key in options:
        if key not in allowed:
            raise unknown(f"option of the metric {name}", key, allowed)
    return _METRICS[name](**options)
