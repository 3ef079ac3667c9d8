"""Several forms of one model, with the same weights, side by side."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vsuite.core.bench.count import count_macs, count_parameters
from vsuite.core.bench.measurement import Measurement, synchronizer, tensors
from vsuite.core.bench.memory import peak_memory
from vsuite.core.bench.subject import Conditions, Subject
from vsuite.core.bench.timing import Spread, time_in_turn
from vsuite.core.errors import InputError


@dataclass(frozen=True)
class Comparison:
    """One form of a model against the first one.

    Attributes:
        speed_up: latency of the first form divided by that of this one, round by round.
        memory_ratio: peak memory of this form divided by that of the first.
        max_difference: largest absolute difference between the outputs of the two.
        relative_difference: the same, divided by the largest absolute output of the first form.
    """

    baseline: str
    speed_up: Spread
    memory_ratio: float
    max_difference: float
    relative_difference: float


@dataclass(frozen=True)
class Result:
    """One line of the benchmark: what was measured, what it costs, and how it compares with the first form (None for that)."""

    subject: Subject
    measurement: Measurement
    comparison: Comparison | None


def compare(subjects: Sequence[Subject], conditions: Conditions, progress: Callable[[str], None] = lambda step: None) -> list[Result]:
    """Measures forms of one model, all with the same weights and all timed in the same rounds.

    Args:
        subjects: see `forms`; the first is the baseline of the others.
        conditions: how they are run.
        progress: told what is being done.

    Raises:
        InputError: where a form does not take an input of this size, or a plain form has parameters of other names.
    """
    label = subjects[0].label
    try:
        inputs = conditions.inputs()
        first = subjects[0].build(precision=conditions.precision)
        others = (subject.build(first.state_dict(), conditions.precision) for subject in subjects[1:])
        models = [model.to(conditions.device) for model in (first, *others)]
        with conditions.applied():
            progress("counting operations")
            # a compiled model hides its operators; it is the optimized form that is compiled
            macs = {s.form: count_macs(m, inputs) for s, m in zip(subjects, models, strict=True) if s.form != "compiled"}
            progress("comparing outputs")
            outputs = [[tensor.float() for tensor in tensors(model(inputs))] for model in models]
            differences = [_difference(output, outputs[0]) for output in outputs]
            del outputs
            progress("timing")
            calls = [functools.partial(model, inputs) for model in models]
            times = time_in_turn(calls, seconds=conditions.seconds, synchronize=synchronizer(conditions.device))
    except RuntimeError as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        shape = "x".join(map(str, (conditions.batch_size, *conditions.size)))
        raise InputError(f"{label} does not run on an input of {shape} on {conditions.device}: {reason}") from error
    results = []
    memories = []
    for subject, model, taken, difference in zip(subjects, models, times, differences, strict=True):
        progress(f"measuring the memory of {subject.label}")
        memories.append(peak_memory(subject, conditions))
        latency = Spread.of(taken)
        counted = macs.get(subject.form) or macs.get("optimized") or macs["fast"]
        cost = Measurement(count_parameters(model), counted, latency, conditions.batch_size / latency.median, memories[-1])
        ratios = [first / this for first, this in zip(times[0], taken, strict=True)]
        comparison = Comparison(label, Spread.of(ratios), memories[-1] / max(1, memories[0]), *difference)
        results.append(Result(subject, cost, comparison if subject is not subjects[0] else None))
    return results


def _difference(output: list[Any], reference: list[Any]) -> tuple[float, float]:
    """Largest absolute difference, and the same relative to the largest absolute value of the reference."""
    if [tensor.shape for tensor in output] != [tensor.shape for tensor in reference]:
        raise InputError("the forms of the model return outputs of different shapes")
    pairs = [(a, b) for a, b in zip(output, reference, strict=True) if b.numel()]
    absolute = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    largest = max((float(b.abs().max()) for _, b in pairs), default=0.0)
    return absolute, absolute / largest if largest else absolute
