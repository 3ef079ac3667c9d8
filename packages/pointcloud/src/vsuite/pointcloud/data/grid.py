"""Grid sampling: one point a cell for training, and fragments that together hold every point for testing."""

from __future__ import annotations

import numpy as np

from vsuite.core.errors import InputError


def grid_cells(points: np.ndarray, size: float) -> tuple[np.ndarray, np.ndarray]:
    """Which cell each point lies in.

    A cell is floor(coordinate / size), less its minimum over the cloud. Cells are told apart by their exact coordinates, not by
    a hash, so that no two ever merge.

    Args:
        points: (N, 3). size: side of a cell, in the points' unit.

    Returns:
        cell number of each point (N,) int64, by rising x, then y, then z; and the cells' coordinates (M, 3) int64.

    Raises:
        InputError: for a size that is not positive, or no points.
    """
    if not size > 0:
        raise InputError(f"the side of a grid cell must be above 0; got {size}")
    if not len(points):
        raise InputError("grid sampling needs at least one point")
    cells = np.floor(points.astype(np.float64) / size).astype(np.int64)
    cells -= cells.min(0)
    extent = [int(value) + 1 for value in cells.max(0)]
    if extent[0] * extent[1] * extent[2] < 2**63:  # one whole number says all three: sorting is several times as fast
        keys = (cells[:, 0] * extent[1] + cells[:, 1]) * extent[2] + cells[:, 2]
        _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
        return numbers.reshape(-1), cells[first]
    coordinates, numbers = np.unique(cells, axis=0, return_inverse=True)
    return numbers.reshape(-1), coordinates


def grid_sample(points: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """For training: index of one random point of each cell, (M,) int64, in the order of the cells."""
    numbers, _ = grid_cells(points, size)
    order, starts, counts = _by_cell(numbers)
    return order[starts + np.floor(rng.random(len(counts)) * counts).astype(np.int64)]


def grid_fragments(points: np.ndarray, size: float) -> list[np.ndarray]:
    """For testing: as many indices as the fullest cell has points; each takes one point of every cell, all together take every point.

    Fragment i takes the (i mod count)-th point of a cell, in the order of the cloud.
    """
    numbers, _ = grid_cells(points, size)
    order, starts, counts = _by_cell(numbers)
    return [order[starts + i % counts] for i in range(int(counts.max()))]


def _by_cell(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Point indices sorted by cell, where each cell starts among them, and how many points it has."""
    order = np.argsort(numbers, kind="stable")
    counts = np.bincount(numbers)
    return order, np.cumsum(counts) - counts, counts
