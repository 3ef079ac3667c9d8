"""Point operations: the exact rules, in every form and on any number of threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vsuite.core import InputError
from vsuite.pointcloud import point_ops
from vsuite.pointcloud.point_ops import (
    ball_queries,
    ball_query,
    farthest_points,
    gather_points,
    interpolate_three,
    nearest_features,
    nearest_points,
)

pytestmark = pytest.mark.skipif(not point_ops.has_compiled_loops(), reason="numba is not installed")


@st.composite
def clouds(draw: st.DrawFn, max_points: int = 40) -> Tensor:
    """Random clouds, clouds on a coarse grid (ties), and clouds with duplicates: B, N, 3."""
    batch, count = draw(st.integers(1, 3)), draw(st.integers(1, max_points))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["random", "grid", "duplicates", "one place", "far"]))
    points = {
        "random": lambda: generator.uniform(-1, 1, (batch, count, 3)),
        "grid": lambda: 0.25 * generator.integers(0, 4, (batch, count, 3)),
        "duplicates": lambda: generator.uniform(-1, 1, (batch, 4, 3))[:, generator.integers(0, 4, count)],
        "one place": lambda: np.full((batch, count, 3), 0.3),
        "far": lambda: generator.uniform(-1e6, 1e6, (batch, count, 3)),
    }[kind]()
    return torch.from_numpy(points.astype(np.float32))


# A third form, one point at a time, that shares nothing with the other two.


def squared(a: np.ndarray, b: np.ndarray) -> np.float32:
    x, y, z = (a - b) * (a - b)
    return (x + y) + z


def naive_farthest(points: np.ndarray, count: int) -> list[int]:
    least = [np.float32(1e10)] * len(points)
    chosen = [0]
    while len(chosen) < count:
        least = [min(old, squared(p, points[chosen[-1]])) for old, p in zip(least, points, strict=True)]
        chosen.append(least.index(max(least)))
    return chosen


def naive_ball(points: np.ndarray, centre: np.ndarray, radius: float, places: int) -> list[int]:
    limit = np.float32(radius) * np.float32(radius)
    inside = [i for i, p in enumerate(points) if squared(p, centre) < limit][:places]
    return inside + [inside[0] if inside else 0] * (places - len(inside))


def naive_nearest(points: np.ndarray, query: np.ndarray, k: int) -> list[int]:
    return sorted(range(len(points)), key=lambda i: (squared(points[i], query), i))[:k]


@given(clouds(), st.data())
@settings(deadline=None, max_examples=60)
def test_farthest_points_in_all_forms(points: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, points.shape[1]))
    got = farthest_points(points, count)
    assert got.tolist() == [naive_farthest(cloud, count) for cloud in points.numpy()]
    assert torch.equal(got, point_ops.plain_farthest(points, count))


@given(clouds(), st.floats(0.01, 2), st.integers(1, 50), st.data())
@settings(deadline=None, max_examples=60)
def test_ball_queries_in_all_forms(points: Tensor, radius: float, places: int, data: st.DataObject) -> None:
    centres = torch.cat([points[:, : data.draw(st.integers(1, points.shape[1]))], points[:, :1] + 7], dim=1)
    radii, sizes = [radius, 2 * radius, 0.25], [places, 3, 8]
    got = ball_queries(points, centres, radii, sizes)
    for index, r, size in zip(got, radii, sizes, strict=True):
        want = [
            [naive_ball(cloud, centre, r, size) for centre in near] for cloud, near in zip(points.numpy(), centres.numpy(), strict=True)
        ]
        assert index.tolist() == want
        assert torch.equal(ball_query(points, centres, r, size), index)
    assert torch.equal(torch.cat(got, dim=2), point_ops.plain_balls(points, centres, radii, sizes))


@given(clouds(), st.data())
@settings(deadline=None, max_examples=60)
def test_nearest_points_in_all_forms(points: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, points.shape[1]))
    queries = torch.cat([points.flip(1)[:, :9], points[:, :1] + 0.125], dim=1)
    got = nearest_points(points, queries, k)
    want = [[naive_nearest(cloud, query, k) for query in asked] for cloud, asked in zip(points.numpy(), queries.numpy(), strict=True)]
    assert got.tolist() == want
    assert torch.equal(got, point_ops.plain_nearest(points, queries, k))


@given(st.integers(1, 60), st.integers(1, 30), st.integers(0, 1000), st.booleans())
@settings(deadline=None, max_examples=60)
def test_smallest_values(count: int, k: int, seed: int, ties: bool) -> None:
    k = min(k, count)
    generator = np.random.default_rng(seed)
    values = generator.integers(0, 4, (5, count)) if ties else generator.normal(size=(5, count))
    scores = torch.from_numpy(values.astype(np.float32))
    got = point_ops._smallest(scores, k)
    assert got.tolist() == np.argsort(scores.numpy(), axis=1, kind="stable")[:, :k].tolist()
    assert torch.equal(scores.gather(1, got), scores.gather(1, point_ops.plain_smallest(scores, k)).sort(dim=1).values)


# Invariants


@given(clouds(), st.data())
@settings(deadline=None, max_examples=40)
def test_a_sampling_begins_with_every_shorter_one(points: Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, points.shape[1]))
    shorter = data.draw(st.integers(1, count))
    long = farthest_points(points, count)
    assert torch.equal(farthest_points(points, shorter), long[:, :shorter])
    sampled = gather_points(points, long)
    again = gather_points(sampled, farthest_points(sampled, shorter))
    assert torch.equal(again, sampled[:, :shorter])  # points, not indices: duplicates may stand for one another


@given(clouds(), st.integers(0, 1000))
@settings(deadline=None, max_examples=40)
def test_appended_duplicates_are_chosen_last(points: Tensor, seed: int) -> None:
    points = points[:1]
    distinct = len({tuple(point) for point in points[0].tolist()})
    copies = points[:, np.random.default_rng(seed).integers(0, points.shape[1], 5)]
    longer = torch.cat([points, copies], dim=1)
    assert torch.equal(farthest_points(longer, distinct), farthest_points(points, distinct))


def test_points_near_the_origin_are_chosen() -> None:
    points = torch.tensor([[[1.0, 0, 0], [0.01, 0, 0], [0.9, 0, 0]]])
    assert farthest_points(points, 2).tolist() == [[0, 1]]


def test_a_ball_excludes_its_surface_and_keeps_the_first_not_the_nearest() -> None:
    points = torch.tensor([[[0.5, 0, 0], [0.25, 0, 0], [0.0, 0, 0], [0.125, 0, 0]]])
    centre = torch.zeros(1, 1, 3)
    assert ball_query(points, centre, 0.5, 4).tolist() == [[[1, 2, 3, 1]]]
    assert ball_query(points, centre, 0.51, 2).tolist() == [[[0, 1]]]


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_any_number_of_threads_finds_the_same(threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_ops, "MIN_WORK", 1)  # else so few points are not worth a second thread
    points = (torch.rand(5, 90, 3, generator=torch.Generator().manual_seed(0)) * 8).round() / 8
    found = []
    for count in (1, 2, 3, 7):
        threads(count)
        chosen = farthest_points(points, 40)
        balls = ball_queries(points, gather_points(points, chosen), (0.2, 0.4), (8, 16))
        found.append(torch.cat([chosen.unsqueeze(2), *balls, nearest_points(points, points[:, :40], 6)], dim=2))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_other_layouts_and_gradients_do_not_matter() -> None:
    points = torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(0))
    want = farthest_points(points, 12)
    for other in (points.transpose(1, 2).contiguous().transpose(1, 2), torch.cat([points, points], 2)[..., :3], points.double()):
        assert torch.equal(farthest_points(other, 12), want)
    assert torch.equal(farthest_points(points.clone().requires_grad_(), 12), want)
    with torch.inference_mode():
        assert torch.equal(farthest_points(points + 0, 12), want)


def test_without_numba(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(point_ops, "has_compiled_loops", lambda: False)
    monkeypatch.setattr(point_ops, "_spread", lambda *_: pytest.fail("ran compiled loops"))
    points = torch.rand(1, 20, 3)
    assert farthest_points(points, 5).shape == (1, 5)
    assert ball_query(points, points, 0.5, 4).shape == (1, 20, 4)
    assert nearest_points(points, points, 3).shape == (1, 20, 3)
    assert nearest_features(points, points, 3).shape == (1, 20, 3)


# Features


def test_nearest_features_are_the_nearest() -> None:
    generator = torch.Generator().manual_seed(0)
    keys, queries = torch.randn(2, 50, 16, generator=generator), torch.randn(2, 30, 16, generator=generator)
    want = torch.cdist(queries.double(), keys.double()).topk(7, largest=False).indices
    assert torch.equal(nearest_features(keys, queries, 7).sort(-1).values, want.sort(-1).values)
    with torch.autocast("cpu", torch.bfloat16):  # bfloat16 would find others
        assert torch.equal(nearest_features(keys, queries, 7).sort(-1).values, want.sort(-1).values)
    assert nearest_features(keys[:, :4], queries, 7).shape == (2, 30, 4)


def test_interpolation_returns_what_is_at_a_point_and_keeps_constants() -> None:
    generator = torch.Generator().manual_seed(0)
    points, features = torch.rand(2, 12, 3, generator=generator), torch.randn(2, 12, 5, generator=generator)
    torch.testing.assert_close(interpolate_three(points, points, features), features, atol=1e-4, rtol=1e-4)
    queries = torch.rand(2, 40, 3, generator=generator)
    torch.testing.assert_close(interpolate_three(points, queries, torch.ones(2, 12, 1)), torch.ones(2, 40, 1))
    torch.testing.assert_close(interpolate_three(points[:, :1], queries, features[:, :1]), features[:, :1].expand(-1, 40, -1))


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 4), st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_gather_and_its_gradient(batch: int, count: int, channels: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(batch, count, channels, generator=generator, requires_grad=True)
    index = torch.randint(0, count, (batch, 6, 2), generator=generator)
    got = gather_points(features, index)
    assert all(torch.equal(got[b, i, j], features[b, index[b, i, j]]) for b in range(batch) for i in range(6) for j in range(2))
    got.sum().backward()
    assert torch.equal(features.grad[..., 0], torch.stack([torch.bincount(row.flatten(), minlength=count) for row in index]).float())


# Bad input


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_is_refused(value: float) -> None:
    good, bad = torch.rand(1, 9, 3), torch.rand(1, 9, 3)
    bad[0, 4, 1] = value
    for call in (
        lambda: farthest_points(bad, 3),
        lambda: ball_query(bad, good, 1, 3),
        lambda: ball_query(good, bad, 1, 3),
        lambda: nearest_points(good, bad, 3),
        lambda: interpolate_three(bad, good, good),
    ):
        with pytest.raises(InputError, match="NaN or infinite"):
            call()


def test_what_cannot_be_asked_for() -> None:
    points = torch.rand(2, 5, 3)
    for call, message in (
        (lambda: farthest_points(points, 6), "6 of 5 points"),
        (lambda: farthest_points(points, 0), "0 of 5 points"),
        (lambda: farthest_points(points[..., :2], 2), r"B, N, 3.*\(2, 5, 2\)"),
        (lambda: farthest_points(points[:, :0], 1), r"N of 1 or more"),
        (lambda: farthest_points(points.long(), 1), "int64"),
        (lambda: nearest_points(points, points, 6), "k is 6"),
        (lambda: nearest_points(points, points[:1], 2), "as many samples"),
        (lambda: ball_query(points, points, 0, 2), "above 0"),
        (lambda: ball_queries(points, points, (0.1, 0.2), (3,)), "2 radii but 1"),
    ):
        with pytest.raises(InputError, match=message):
            call()
