"""Latency, measured so that two models can be compared on a machine that does other things as well."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

MIN_REPEATS, MAX_REPEATS = 5, 1000


@dataclass(frozen=True)
class Spread:
    """Median, 10th and 90th percentile of repeated measurements."""

    median: float
    p10: float
    p90: float
    repeats: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        ordered = sorted(values)
        last = len(ordered) - 1
        return cls(statistics.median(ordered), ordered[round(0.1 * last)], ordered[round(0.9 * last)], len(ordered))


def time_in_turn(
    calls: Sequence[Callable[[], Any]], *, seconds: float = 10.0, synchronize: Callable[[], Any] | None = None
) -> list[list[float]]:
    """Seconds of each call, over and over, all calls taking turns (A B A B ...), after a warm-up.

    Taking turns exposes all calls to the same disturbances, so that their ratios hold, round by round, where the
    times themselves drift.

    Args:
        calls: what to time.
        seconds: budget a call; between 5 and 1,000 rounds are made.
        synchronize: waits for the device, called before each reading of the clock.

    Returns:
        One list a call, all of the same length: entry i of each comes from round i.
    """
    wait = synchronize or (lambda: None)

    def timed(call: Callable[[], Any]) -> float:
        wait()
        start = time.perf_counter()
        call()
        wait()
        return time.perf_counter() - start

    for call in calls:  # twice at least: the first call allocates and chooses kernels, on a GPU the clock has to rise too
        start = time.perf_counter()
        timed(call)
        while timed(call) and time.perf_counter() - start < min(0.1 * seconds, 1.0):
            pass
    times: list[list[float]] = [[] for _ in calls]
    start = time.perf_counter()
    for done in range(MAX_REPEATS):
        if done >= MIN_REPEATS and time.perf_counter() - start > seconds * len(calls):
            break
        for call, taken in zip(calls, times, strict=True):
            taken.append(timed(call))
    return times
