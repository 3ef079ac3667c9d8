"""Compiled loops of `point_ops`; imports numba, so only `point_ops` imports it, on first use.

Each kernel works on the items `first` to `last` of its arrays and on nothing else, so that items can be spread over any
number of threads with the same result. Sums of squares are taken in the order x, y, z without contraction: fast-math
stays off, for the plain form must find the same neighbours.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

Array = Any


def _compiled(kernel: Callable[..., None]) -> Callable[..., None]:
    """The kernel as machine code that runs without Python's lock, kept on disk where a cache folder can be written."""
    try:
        return numba.njit(nogil=True, cache=True, boundscheck=False)(kernel)
    except RuntimeError:  # no place for a cache: compile in each process
        return numba.njit(nogil=True, boundscheck=False)(kernel)


@_compiled
def farthest(first: int, last: int, coordinates: Array, nearest: Array, chosen: Array) -> None:
    """coordinates: B, 3, N; nearest: B, N, overwritten; chosen: B, M, written. Items are samples."""
    for b in range(first, last):
        x, y, z = coordinates[b, 0], coordinates[b, 1], coordinates[b, 2]
        distance = nearest[b]
        distance[:] = np.float32(1e10)
        bits = distance.view(np.int32)  # floats of 0 and above order like their bits, and integers have a vector maximum
        index = 0
        for i in range(chosen.shape[1]):
            chosen[b, i] = index
            px, py, pz = x[index], y[index], z[index]
            for j in range(x.size):
                dx, dy, dz = x[j] - px, y[j] - py, z[j] - pz
                d = dx * dx + dy * dy + dz * dz
                distance[j] = np.minimum(distance[j], d)  # a conditional would become masked stores, four times slower
            largest, index = np.int32(-1), 0
            for start in range(0, x.size, 64):
                highest = np.int32(-1)
                for j in range(start, min(start + 64, x.size)):
                    highest = max(highest, bits[j])
                if highest > largest:
                    largest, index = highest, start
            while bits[index] != largest:
                index += 1


@_compiled
def balls(
    first: int, last: int, coordinates: Array, centres: Array, squared_radii: Array, sizes: Array, starts: Array, found: Array
) -> None:
    """coordinates: B, 3, N; centres: B, M, 3; found: B, M, sum of sizes, written. Items are centres of all samples."""
    num_centres, num_points = centres.shape[1], coordinates.shape[2]
    count = np.zeros(sizes.size, np.int64)
    distance = np.empty(num_points, np.float32)
    widest = squared_radii.max()
    for item in range(first, last):
        b, i = item // num_centres, item % num_centres
        x, y, z = coordinates[b, 0], coordinates[b, 1], coordinates[b, 2]
        px, py, pz = centres[b, i, 0], centres[b, i, 1], centres[b, i, 2]
        for j in range(num_points):
            dx, dy, dz = x[j] - px, y[j] - py, z[j] - pz
            distance[j] = dx * dx + dy * dy + dz * dz
        row = found[b, i]
        count[:] = 0
        missing = sizes.size
        for j in range(num_points):
            if distance[j] >= widest:
                continue
            for s in range(sizes.size):
                if count[s] < sizes[s] and distance[j] < squared_radii[s]:
                    row[starts[s] + count[s]] = j
                    count[s] += 1
                    missing -= count[s] == sizes[s]
            if missing == 0:
                break
        for s in range(sizes.size):
            filler = row[starts[s]] if count[s] else 0
            row[starts[s] + count[s] : starts[s] + sizes[s]] = filler


@_compiled
def nearest(first: int, last: int, coordinates: Array, queries: Array, found: Array) -> None:
    """coordinates: B, 3, N; queries: B, M, 3; found: B, M, k, written in order of (distance, index). Items are queries."""
    num_queries, num_points, k = queries.shape[1], coordinates.shape[2], found.shape[2]
    distance = np.empty(num_points, np.float32)
    kept = np.empty(k, np.float32)
    for item in range(first, last):
        b, i = item // num_queries, item % num_queries
        x, y, z = coordinates[b, 0], coordinates[b, 1], coordinates[b, 2]
        px, py, pz = queries[b, i, 0], queries[b, i, 1], queries[b, i, 2]
        for j in range(num_points):
            dx, dy, dz = x[j] - px, y[j] - py, z[j] - pz
            distance[j] = dx * dx + dy * dy + dz * dz
        _select(distance, kept, found[b, i])


@_compiled
def smallest(first: int, last: int, values: Array, found: Array) -> None:
    """values: R, N; found: R, k, written in order of (value, index). Items are rows."""
    kept = np.empty(found.shape[1], np.float32)
    for row in range(first, last):
        _select(values[row], kept, found[row])


@_compiled
def _select(values: Array, kept: Array, found: Array) -> None:
    """Indices of the smallest values in order of (value, index), by insertion; `kept` is scratch of the same length."""
    k = found.size
    filled = 0
    for j in range(values.size):
        value = values[j]
        if filled == k and value >= kept[k - 1]:
            continue
        place = filled if filled < k else k - 1
        while place > 0 and kept[place - 1] > value:
            kept[place], found[place] = kept[place - 1], found[place - 1]
            place -= 1
        kept[place], found[place] = value, j
        filled = min(filled + 1, k)
