"""The greedy pass of `boxes.nms` on the CPU, compiled. Imported only when it is used: numba takes a while to load."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np


def _compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, kept on disk where a cache folder can be written."""
    try:
        return numba.njit(cache=True)(kernel)
    except RuntimeError:  # no place for a cache: compile in each process
        return numba.njit(kernel)


@_compiled
def _clamp(value: float, limit: float) -> float:
    return min(max(value, -limit), limit)


@_compiled
def _mean_of_clamped(start: float, end: float, limit: float) -> float:
    low, high = min(start, end), max(start, end)
    inner_low, inner_high = _clamp(low, limit), _clamp(high, limit)
    middle = (inner_low + inner_high) / 2
    if high == low:
        return middle
    above, below = max(high - max(low, limit), 0.0), max(min(high, -limit) - low, 0.0)
    return (limit * (above - below) + middle * (inner_high - inner_low)) / (high - low)


@_compiled
def _shared_at_least(a: np.ndarray, b: np.ndarray, needed: float) -> float:
    """The shared area of two rectangles (x y length width cos sin), or 0 where a bound shows that it is below `needed`.

    The formula is that of `boxes.paired_overlap`.
    """
    dx, dy = a[0] - b[0], a[1] - b[1]
    x, y = b[4] * dx + b[5] * dy, b[4] * dy - b[5] * dx
    cos, sin = a[4] * b[4] + a[5] * b[5], a[5] * b[4] - a[4] * b[5]
    half_length, half_width = b[2] / 2, b[3] / 2
    reach_x = (abs(cos) * a[2] + abs(sin) * a[3]) / 2
    reach_y = (abs(sin) * a[2] + abs(cos) * a[3]) / 2
    side_x = min(x + reach_x, half_length) - max(x - reach_x, -half_length)
    side_y = min(y + reach_y, half_width) - max(y - reach_y, -half_width)
    if side_x <= 0 or side_y <= 0 or side_x * side_y < needed:
        return 0.0
    along_x, along_y, across_x, across_y = cos * a[2] / 2, sin * a[2] / 2, -sin * a[3] / 2, cos * a[3] / 2
    x0, y0 = x + along_x - across_x, y + along_y - across_y  # the corner before the first: front right
    shared = 0.0
    for along, across in ((1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)):
        x1, y1 = x + along * along_x + across * across_x, y + along * along_y + across * across_y
        start, end = _clamp(x0, half_length), _clamp(x1, half_length)
        if start != end:
            slope = (y1 - y0) / (x1 - x0)
            shared += (start - end) * _mean_of_clamped(y0 + (start - x0) * slope, y0 + (end - x0) * slope, half_width)
        x0, y0 = x1, y1
    return shared if shared > 1e-12 * b[2] * b[3] else 0.0


@_compiled
def _greedy(rectangles: np.ndarray, along_x: np.ndarray, threshold: float, limit: int) -> np.ndarray:
    """`along_x`: the rows sorted by x, so that only those within reach in x are looked at."""
    count = len(rectangles)
    free, kept = np.ones(count, np.bool_), np.empty(min(count, limit), np.int64)
    radius = np.sqrt(rectangles[:, 2] ** 2 + rectangles[:, 3] ** 2) / 2 * (1 + 1e-9)
    largest = radius.max() if count else 0.0
    sorted_x = rectangles[along_x, 0]
    found = 0
    for i in range(count):
        if not free[i]:
            continue
        if found == limit:
            break
        kept[found] = i
        found += 1
        x, y, area = rectangles[i, 0], rectangles[i, 1], rectangles[i, 2] * rectangles[i, 3]
        first = np.searchsorted(sorted_x, x - radius[i] - largest)
        last = np.searchsorted(sorted_x, x + radius[i] + largest, side="right")
        for j in along_x[first:last]:
            if j <= i or not free[j] or abs(y - rectangles[j, 1]) > radius[i] + radius[j]:
                continue
            total = area + rectangles[j, 2] * rectangles[j, 3]
            needed = threshold / (1 + threshold) * total  # the same as shared / (total - shared) > threshold
            shared = _shared_at_least(rectangles[i], rectangles[j], needed * (1 - 1e-9))
            if total > shared and shared / (total - shared) > threshold:
                free[j] = False
    return kept[:found]


def greedy(boxes: np.ndarray, threshold: float, limit: int | None) -> np.ndarray:
    """Rows kept of (N, 7) boxes sorted by falling score: int64, ascending, at most `limit`."""
    boxes = boxes.astype(np.float64)
    rectangles = np.column_stack([boxes[:, [0, 1, 3, 4]], np.cos(boxes[:, 6]), np.sin(boxes[:, 6])])
    return _greedy(rectangles, np.argsort(boxes[:, 0]), threshold, len(boxes) if limit is None else limit)
