"""Boxes: rotated overlap against independent oracles, suppression against the plain greedy loop, conventions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.pointcloud import boxes as module
from vsuite.pointcloud.boxes import (
    box_of_points,
    check_boxes,
    corners,
    corners_bev,
    from_mmdet,
    iou_3d,
    iou_bev,
    nms,
    overlap_bev,
    paired_iou_3d,
    points_in_boxes,
    to_mmdet,
    wrap_angle,
)

SEEDS = st.integers(0, 10_000)


def random_boxes(seed: int, count: int = 12, spread: float = 6.0) -> Tensor:
    rng = np.random.default_rng(seed)
    position = rng.uniform(-spread / 2, spread / 2, (count, 3)) * [1, 1, 0.3]
    size = rng.uniform(0.1, 4.0, (count, 3))
    return torch.from_numpy(np.hstack([position, size, rng.uniform(-9, 9, (count, 1))])).float()


def clipped_area(subject: np.ndarray, clip: np.ndarray) -> float:
    """Area shared by two convex polygons, counter-clockwise, by clipping one with each edge of the other: the plain way."""
    polygon = [tuple(point) for point in subject]
    for a, b in zip(clip, np.roll(clip, -1, 0), strict=True):
        sides = [(b[0] - a[0]) * (y - a[1]) - (b[1] - a[1]) * (x - a[0]) for x, y in polygon]
        result = []
        for i in range(len(polygon)):
            (p, q), (s, t) = (polygon[i - 1], polygon[i]), (sides[i - 1], sides[i])
            if (s >= 0) != (t >= 0):
                result.append((p[0] + (q[0] - p[0]) * s / (s - t), p[1] + (q[1] - p[1]) * s / (s - t)))
            if t >= 0:
                result.append(q)
        polygon = result
    area = sum(p[0] * q[1] - q[0] * p[1] for p, q in zip(polygon, polygon[1:] + polygon[:1], strict=True))
    return area / 2


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS)
def test_overlap_equals_plain_polygon_clipping(seed: int) -> None:
    a, b = random_boxes(seed, 8), random_boxes(seed + 77_777, 9)
    b[0] = a[0]
    b[1], b[1, 6] = a[1], a[1, 6] + math.pi / 2
    expected = [[clipped_area(p, q) for q in corners_bev(b.double()).numpy()] for p in corners_bev(a.double()).numpy()]
    np.testing.assert_allclose(overlap_bev(a, b).numpy(), expected, atol=1e-9)


def test_overlap_agrees_with_random_points() -> None:
    a, b = random_boxes(3, 4, 3.0), random_boxes(4, 4, 3.0)
    points = torch.from_numpy(np.random.default_rng(0).uniform(-6, 6, (400_000, 3))).float()
    a[:, 2], b[:, 2], a[:, 5], b[:, 5] = 0, 0, 20, 20  # every point is between bottom and top
    inside_a, inside_b = points_in_boxes(points, a), points_in_boxes(points, b)
    counted = (inside_a[:, :, None] & inside_b[:, None]).float().mean(0) * 144
    torch.testing.assert_close(counted.double(), overlap_bev(a, b), atol=0.05, rtol=0.0)


def test_iou_agrees_with_open3d() -> None:
    try:
        from open3d.ml.contrib import iou_bev_cpu
    except Exception as error:  # open3d wants one version of torch for this, or is built without
        pytest.skip(f"open3d.ml.contrib does not import: {error}")
    a, b = random_boxes(1, 40), random_boxes(2, 50)
    rows = [np.ascontiguousarray(x[:, [0, 1, 3, 4, 6]].numpy()) * np.float32([1, 1, 1, 1, -1]) for x in (a, b)]  # its yaw is clockwise
    np.testing.assert_allclose(iou_bev_cpu(*rows), iou_bev(a, b).numpy(), atol=1e-4)


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, turn=st.floats(-4, 4), shift=st.floats(-50, 50))
def test_iou_does_not_depend_on_the_frame(seed: int, turn: float, shift: float) -> None:
    a, b = random_boxes(seed).double(), random_boxes(seed + 1).double()
    moved = []
    for box in (a, b):
        rotation = torch.tensor([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]], dtype=torch.float64)
        new = box.clone()
        new[:, :2] = box[:, :2] @ rotation + shift
        new[:, 2] += shift
        new[:, 6] += turn
        moved.append(new)
    torch.testing.assert_close(iou_3d(*moved), iou_3d(a, b), atol=1e-9, rtol=0.0)
    torch.testing.assert_close(iou_3d(a, b), iou_3d(b, a).T, atol=1e-12, rtol=0.0)
    torch.testing.assert_close(paired_iou_3d(a, b), iou_3d(a, b).diagonal())


def test_known_overlaps() -> None:
    unit = torch.tensor([[0.0, 0, 0, 2, 2, 1, 0]])
    others = torch.tensor(
        [
            [0.0, 0, 0, 2, 2, 1, 0],  # the same
            [0.0, 0, 0, 2, 2, 1, math.pi],  # turned round
            [2.0, 0, 0, 2, 2, 1, 0],  # touching along an edge
            [0.2, 0.1, 0, 1, 0.5, 1, 0.7],  # inside
            [0.0, 0, 0.5, 2, 2, 1, 0],  # half as high
            [0.0, 0, 0, 2, 2, 1, math.pi / 4],  # an octagon
            [0.0, 0, 0, 0, 2, 1, 0],  # no length
        ]
    )
    octagon = 8 * (math.sqrt(2) - 1)
    expected = torch.tensor([[4, 4, 0, 0.5, 4, octagon, 0]], dtype=torch.float64)
    torch.testing.assert_close(overlap_bev(unit, others), expected, atol=1e-6, rtol=0.0)
    ious = torch.tensor([[1, 1, 0, 0.125, 1 / 3, octagon / (8 - octagon), 0]], dtype=torch.float64)
    torch.testing.assert_close(iou_3d(unit, others), ious, atol=1e-6, rtol=0.0)
    empty = torch.zeros(1, 7)
    assert iou_bev(empty, empty).item() == 0


def greedy(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    overlaps, kept = iou_bev(boxes, boxes), []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(overlaps[k, i] <= threshold for k in kept):
            kept.append(i)
    return kept


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, threshold=st.sampled_from([0.0, 0.1, 0.3, 0.55, 0.8, 1.0]), spread=st.sampled_from([1.0, 6.0, 40.0]))
def test_nms_equals_the_greedy_loop(seed: int, threshold: float, spread: float) -> None:
    boxes = random_boxes(seed, 60, spread)
    scores = torch.from_numpy(np.random.default_rng(seed).integers(0, 20, 60) / 20).float()  # with ties
    expected = greedy(boxes, scores, threshold)
    assert nms(boxes, scores, threshold).tolist() == expected
    assert nms(boxes, scores, threshold, post_max=3).tolist() == expected[:3]
    best = scores.argsort(descending=True, stable=True)[:10]
    assert nms(boxes, scores, threshold, pre_max=10).tolist() == [int(best[i]) for i in greedy(boxes[best], scores[best], threshold)]
    order = scores.argsort(descending=True, stable=True)  # the form for other devices
    rows = module._greedy(60, module._conflicts(boxes[order], threshold), None)
    assert order[torch.from_numpy(rows)].tolist() == expected


def test_nms_among_many_boxes_is_the_same_on_both_paths() -> None:
    boxes, scores = random_boxes(5, 1500, 60.0), torch.rand(1500, generator=torch.Generator().manual_seed(0))
    order = scores.argsort(descending=True)
    rows = module._greedy(1500, module._conflicts(boxes[order], 0.3), None)
    assert nms(boxes, scores, 0.3).tolist() == order[torch.from_numpy(rows)].tolist()


def test_empty_inputs() -> None:
    none, some = torch.zeros(0, 7), random_boxes(0, 3)
    assert iou_bev(none, some).shape == (0, 3)
    assert iou_3d(some, none).shape == (3, 0)
    assert nms(none, torch.zeros(0), 0.5).shape == (0,)
    assert corners(none).shape == (0, 8, 3)
    assert to_mmdet(none).shape == (0, 7)
    assert points_in_boxes(torch.zeros(0, 4), some).shape == (0, 3)
    assert box_of_points(torch.zeros(5, 3), none).tolist() == [-1] * 5


def test_corners_and_points() -> None:
    box = torch.tensor([[1.0, 2, 3, 4, 2, 6, math.pi / 2]])
    found = corners(box)[0]
    torch.testing.assert_close(found[0], torch.tensor([0.0, 4, 0]))  # front left: ahead is +y, left is -x
    torch.testing.assert_close(found[7], torch.tensor([2.0, 4, 6]))  # front right, at the top
    boxes = random_boxes(9, 5)
    for scale, expected in ((0.999, True), (1.001, False)):
        points = boxes[:, None, :3] + (corners(boxes) - boxes[:, None, :3]) * scale
        for i, own in enumerate(points):
            assert (points_in_boxes(own, boxes)[:, i] == expected).all()
    inside = points_in_boxes(boxes[:, :3], boxes)
    assert inside.diagonal().all()
    assert box_of_points(boxes[:, :3], boxes).tolist() == [row.nonzero()[0].item() for row in inside]


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS)
def test_mmdet_convention(seed: int) -> None:
    boxes = torch.cat([random_boxes(seed), torch.ones(12, 2)], 1)
    theirs = to_mmdet(boxes)
    back = from_mmdet(theirs)
    torch.testing.assert_close(back[:, :6], boxes[:, :6], atol=1e-6, rtol=0.0)
    torch.testing.assert_close(wrap_angle(back[:, 6] - boxes[:, 6]), torch.zeros(12), atol=1e-5, rtol=0.0)
    assert (back[:, 7:] == 1).all()
    # Its outline by its own formula: yaw turns clockwise, d0 across and d1 along.
    x, y, _, d0, d1, _, yaw = theirs[:, :7].T
    outlines = []
    for i, j in itertools.product((-0.5, 0.5), repeat=2):
        dx, dy = i * d0, j * d1
        outlines.append(torch.stack([x + dx * yaw.cos() + dy * yaw.sin(), y - dx * yaw.sin() + dy * yaw.cos()], 1))
    distance = torch.cdist(torch.stack(outlines, 1), corners_bev(boxes))
    assert distance.amin(2).max() < 1e-4


@given(angle=st.floats(-100, 100, width=32))
def test_wrapped_angles(angle: float) -> None:
    wrapped = wrap_angle(torch.tensor([angle], dtype=torch.float64)).item()
    assert -math.pi <= wrapped < math.pi + 1e-12
    assert math.cos(wrapped) == pytest.approx(math.cos(angle), abs=1e-9)
    assert math.sin(wrapped) == pytest.approx(math.sin(angle), abs=1e-9)


def test_bad_boxes() -> None:
    good = random_boxes(0, 3)
    for column, value, message in ((0, math.nan, "row 1 holds NaN"), (6, math.inf, "row 1 holds NaN"), (4, -1.0, "row 1 has a negative")):
        bad = good.clone()
        bad[1, column] = value
        with pytest.raises(InputError, match=message):
            iou_bev(bad, good)
        with pytest.raises(InputError, match=message):
            nms(bad, torch.ones(3), 0.5)
    with pytest.raises(InputError, match="shape"):
        check_boxes(torch.zeros(3, 5))
    with pytest.raises(InputError, match="scores"):
        nms(good, torch.tensor([1.0, math.nan, 0.0]), 0.5)
    check_boxes(torch.cat([good, torch.full((3, 2), math.nan)], 1))  # an unknown velocity is no error
