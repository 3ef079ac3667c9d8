"""Grid sampling: the invariants of training and test samples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.grid import grid_cells, grid_fragments, grid_sample

clouds = hnp.arrays(np.float32, st.tuples(st.integers(1, 60), st.just(3)), elements=st.floats(-3, 3, width=32))
sizes = st.sampled_from([0.25, 0.7, 2.0, 10.0])


def plain_cells(points: np.ndarray, size: float) -> list[tuple[int, ...]]:
    cells = np.floor(points.astype(np.float64) / size).astype(int)
    return [tuple(row) for row in cells - cells.min(0)]


@settings(max_examples=60, deadline=None)
@given(clouds, sizes)
def test_cells_are_exact(points: np.ndarray, size: float) -> None:
    numbers, coordinates = grid_cells(points, size)
    expected = plain_cells(points, size)
    assert [tuple(coordinates[number]) for number in numbers] == expected
    assert [tuple(row) for row in coordinates] == sorted(set(expected))


def test_far_cells_do_not_collide() -> None:
    """Cells whose fused key would not fit into 64 bits are told apart too."""
    points = np.array([[0, 0, 0], [1e12, 1e12, 1e12], [1e12, 0, 1e12], [0, 0, 0.4]])
    numbers, coordinates = grid_cells(points, 0.5)
    assert len(coordinates) == 3
    assert numbers[0] == numbers[3]
    assert len(set(numbers.tolist())) == 3


@settings(max_examples=60, deadline=None)
@given(clouds, sizes, st.integers(0, 2**32))
def test_training_takes_one_point_of_each_cell(points: np.ndarray, size: float, seed: int) -> None:
    chosen = grid_sample(points, size, np.random.default_rng(seed))
    cells = plain_cells(points, size)
    assert [cells[i] for i in chosen] == sorted(set(cells))


def test_training_draws_evenly() -> None:
    points = np.zeros((4, 3), np.float32)
    rng = np.random.default_rng(0)
    counts = np.bincount([grid_sample(points, 1.0, rng)[0] for _ in range(4000)], minlength=4)
    assert (np.abs(counts - 1000) < 120).all()


@settings(max_examples=60, deadline=None)
@given(clouds, sizes)
def test_fragments(points: np.ndarray, size: float) -> None:
    cells = plain_cells(points, size)
    members = {cell: [i for i, other in enumerate(cells) if other == cell] for cell in sorted(set(cells))}
    fragments = grid_fragments(points, size)
    assert len(fragments) == max(len(indices) for indices in members.values())
    for number, fragment in enumerate(fragments):
        assert fragment.tolist() == [indices[number % len(indices)] for indices in members.values()]
    assert set(np.concatenate(fragments).tolist()) == set(range(len(points)))


def test_refused() -> None:
    with pytest.raises(InputError, match="must be above 0; got 0"):
        grid_cells(np.zeros((1, 3)), 0)
    with pytest.raises(InputError, match="at least one point"):
        grid_cells(np.zeros((0, 3)), 1)
