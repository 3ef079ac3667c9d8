"""Points to voxels and back to maps, on grids and points of any kind."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core import InputError
from vsuite.pointcloud.voxels import check_points, grid_size, inside_range, scatter_to_bev, voxel_coordinates, voxelize, voxels_per_sample

RANGE = (-4.0, -2.0, -1.0, 4.0, 2.0, 3.0)
SIZE = (0.5, 0.25, 4.0)


def cloud(seed: int, count: int, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)) * spread


def test_published_grid() -> None:
    assert grid_size((0.32, 0.32, 6), (-74.88, -74.88, -2, 74.88, 74.88, 4)) == (468, 468, 1)


def test_the_last_cell_reaches_beyond_a_range_that_is_no_multiple() -> None:
    assert grid_size((0.3, 1, 1), (0, 0, 0, 1, 1, 1)) == (4, 1, 1)


@pytest.mark.parametrize(
    ("size", "extent"),
    [
        ((1, 1), RANGE),
        (SIZE, RANGE[:5]),
        ((0, 1, 1), RANGE),
        ((1, 1, -1), RANGE),
        (SIZE, (0, 0, 0, 1, 0, 1)),
        (SIZE, (0, 0, 0, 1, float("nan"), 1)),
    ],
)
def test_impossible_grids(size: tuple[float, ...], extent: tuple[float, ...]) -> None:
    with pytest.raises(InputError):
        grid_size(size, extent)


@given(seed=st.integers(0, 1000), counts=st.lists(st.integers(0, 40), min_size=1, max_size=4))
def test_voxels_are_the_distinct_cells_in_order(seed: int, counts: list[int]) -> None:
    points = [cloud(seed + i, count) for i, count in enumerate(counts)]
    coordinates, index = voxelize(points, SIZE, RANGE)
    cells = [[i, *cell] for i, p in enumerate(points) for cell in voxel_coordinates(p, SIZE, RANGE).tolist()]
    assert coordinates.tolist() == sorted(map(list, set(map(tuple, cells))))
    assert coordinates[index].tolist() == cells
    assert voxels_per_sample(coordinates, len(counts)) == [len({tuple(c) for c in cells if c[0] == i}) for i in range(len(counts))]


@given(seed=st.integers(0, 1000))
def test_cells_by_division_in_single_precision(seed: int) -> None:
    points = cloud(seed, 50)
    lower, size, cells = np.float32(RANGE[:3]), np.float32(SIZE), np.int64(grid_size(SIZE, RANGE))
    want = np.clip(np.floor((points[:, :3].numpy() - lower) / size), 0, cells - 1)
    assert np.array_equal(voxel_coordinates(points, SIZE, RANGE), want[:, ::-1])


def test_a_point_on_a_border_belongs_to_the_upper_cell_and_the_range_to_its_lower_end() -> None:
    points = torch.tensor([[-4.0, -2.0, -1.0], [-3.5, -1.75, 2.99], [4.0, 0.0, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 3.0]])
    assert voxel_coordinates(points, SIZE, RANGE)[:2].tolist() == [[0, 0, 0], [0, 1, 1]]
    assert inside_range(points, RANGE).tolist() == [True, True, False, False, False]


def test_points_beyond_the_range_land_in_border_cells() -> None:
    points = torch.tensor([[1e9, -1e9, 1e9], [-1e9, 1e9, -1e9]])
    assert voxel_coordinates(points, SIZE, RANGE).tolist() == [[0, 0, 15], [0, 15, 0]]


@given(seed=st.integers(0, 1000), counts=st.lists(st.integers(0, 30), min_size=1, max_size=3))
def test_a_map_holds_each_voxel_at_its_cell_and_zeros(seed: int, counts: list[int]) -> None:
    coordinates, _ = voxelize([cloud(seed + i, count) for i, count in enumerate(counts)], SIZE, RANGE)
    features = torch.rand(len(coordinates), 3) + 1
    bev = scatter_to_bev(features, coordinates, len(counts), (16, 16))
    assert bev.shape == (len(counts), 3, 16, 16)
    assert bev.is_contiguous(memory_format=torch.channels_last)
    b, _, y, x = coordinates.T
    assert torch.equal(bev[b, :, y, x], features)
    assert int((bev != 0).sum()) == features.numel()


@settings(deadline=None, max_examples=20)
@given(st.data())
def test_gradients_of_a_map_are_those_of_its_voxels(data: st.DataObject) -> None:
    coordinates, _ = voxelize([cloud(data.draw(st.integers(0, 99)), 20)], SIZE, RANGE)
    features = torch.rand(len(coordinates), 2, requires_grad=True)
    weight = torch.rand(1, 2, 16, 16)
    (scatter_to_bev(features, coordinates, 1, (16, 16)) * weight).sum().backward()
    assert torch.equal(features.grad, weight[0, :, coordinates[:, 2], coordinates[:, 3]].T)


@pytest.mark.parametrize(
    ("points", "word"),
    [
        (torch.zeros(3, 5), "5"),
        (torch.zeros(4), "rows of 4"),
        (torch.zeros(3, 4, dtype=torch.int64), "floating"),
        (torch.tensor([[0.0, 0, 0, 0], [float("nan"), 0, 0, 0]]), "1 of 2 points"),
        (torch.tensor([[0.0, 0, float("inf"), 0]]), "infinite"),
    ],
)
def test_bad_points_are_refused(points: torch.Tensor, word: str) -> None:
    with pytest.raises(InputError, match=word) as error:
        check_points([torch.zeros(0, 4), points], 4)
    assert str(error.value).startswith("sample 1: ")
