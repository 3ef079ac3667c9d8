"""Detection metrics on cases whose values are known, and KITTI's counting against the plain loops."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.pointcloud.metrics.detection import Found, Truths
from vsuite.pointcloud.metrics.kitti import kitti_ap, kitti_curve, kitti_definition, score_thresholds
from vsuite.pointcloud.metrics.nuscenes import nuscenes_ap, nuscenes_definition
from vsuite.pointcloud.metrics.waymo import area_under_curve, waymo_ap, waymo_definition


def box(x: float, y: float = 0.0, yaw: float = 0.0) -> list[float]:
    return [x, y, 0.0, 4.0, 2.0, 1.5, yaw]


def frames(count: int, per_frame: int = 5, **facts: Any) -> tuple[list[Truths], list[Found]]:
    """Cars in a row, all found exactly, with different scores."""
    boxes = np.array([box(10.0 * i) for i in range(per_frame)])
    names = ["Car"] * per_frame
    truths = [Truths(boxes, names, **facts) for _ in range(count)]
    rng = np.random.default_rng(0)
    return truths, [Found(boxes.copy(), rng.uniform(0.1, 1, per_frame), names) for _ in range(count)]


def test_perfect_detections() -> None:
    truths, found = frames(20)
    for row in kitti_ap(truths, found):
        assert (row.r40, row.r11, row.aos_r40, row.aos_r11) == pytest.approx((100, 100, 100, 100))
        assert row.num_truths == 100
    assert all(row.ap == pytest.approx(100) and row.aph == pytest.approx(100) for row in waymo_ap(truths, found) if row.num_truths)
    result = nuscenes_ap(truths, found)
    assert result.mean_ap == pytest.approx(100)
    assert result.nds == pytest.approx(100)
    assert result.counted == ("translation", "scale", "orientation")


def test_half_of_the_objects_found() -> None:
    """Half is found, with the better scores, and then come as many false positives."""
    truths, _ = frames(20)
    found = [Found(np.array([box(0), box(10), box(500), box(600)]), np.array([0.9, 0.8, 0.2, 0.1]), ["Car"] * 4) for _ in truths]
    row = kitti_ap(truths, found)[0]
    assert row.r40 == pytest.approx(100 * 16 / 40)  # recalls 0 to 0.4 in steps of 1/40 are 17 entries, the first of which R40 leaves out
    assert waymo_ap(truths, found)[0].ap == pytest.approx(40)
    # Recalls 0.11 to 0.39 at precision 1; at 0.40 the false positives have brought it to 0.5.
    assert nuscenes_ap(truths, found).rows[0].ap[2.0] == pytest.approx(100 * (29 + 0.4 / 0.9) / 90)


def test_orientation() -> None:
    truths, found = frames(20)
    turned = [Found(f.boxes + np.array([0, 0, 0, 0, 0, 0, math.pi]), f.scores, f.names) for f in found]
    row = kitti_ap(truths, turned)[0]
    assert row.r40 == pytest.approx(100)
    assert row.aos_r40 == pytest.approx(0, abs=1e-9)
    first = waymo_ap(truths, turned)[0]
    assert (first.ap, first.aph) == pytest.approx((100, 0), abs=1e-6)
    assert nuscenes_ap(truths, turned).errors["orientation"] == pytest.approx(math.pi)
    slightly = [Found(f.boxes + np.array([0, 0, 0, 0, 0, 0, 0.1]), f.scores, f.names) for f in found]
    assert waymo_ap(truths, slightly)[0].aph == pytest.approx(100 * (1 - 0.1 / math.pi))


def test_levels_and_bands() -> None:
    boxes = np.array([box(10), box(40), box(60), box(80)])
    truth = Truths(boxes, ["Car"] * 4, num_points=np.array([100, 3, 50, 0]), hard=np.array([False, False, True, False]))
    found = Found(boxes[[0, 2]], np.array([0.5, 0.9]), ["Car"] * 2)
    rows = {(row.level, row.band): row for row in waymo_ap([truth], [found]) if row.name == "Car"}
    assert [rows[1, band].num_truths for band in ("all", "0-30", "30-50", "50+")] == [1, 1, 0, 0]
    assert [rows[2, band].num_truths for band in ("all", "0-30", "30-50", "50+")] == [3, 1, 1, 1]
    assert rows[1, "all"].ap == pytest.approx(100)  # the hard one is ignored, not wrong
    assert rows[2, "all"].ap == pytest.approx(200 / 3)
    assert math.isnan(rows[1, "30-50"].ap)
    assert rows[2, "30-50"].ap == 0
    on_nothing = Found(boxes[[0, 3]], np.array([0.5, 0.9]), ["Car"] * 2)  # one on the object without points
    rows = {(row.level, row.band): row for row in waymo_ap([truth], [on_nothing]) if row.name == "Car"}
    assert rows[1, "all"].ap == pytest.approx(50)
    assert rows[1, "0-30"].ap == pytest.approx(100)


def test_area_does_not_depend_on_the_order_of_equal_scores() -> None:
    scores, right = np.array([0.5, 0.5, 0.5, 0.5]), np.array([True, False, False, True])
    for order in ([0, 1, 2, 3], [1, 2, 0, 3], [0, 3, 1, 2]):
        assert area_under_curve(scores[order], right[order], right[order].astype(float), 4) == pytest.approx(0.25)


def test_difficulties_of_the_image() -> None:
    """A truth of each kind: easy, moderate (occluded), hard (truncated), too small for any; all found."""
    boxes = np.array([box(10.0 * i) for i in range(4)] * 15)
    heights = np.array([50, 30, 30, 20] * 15)
    image = np.stack([np.zeros(60), np.zeros(60), np.full(60, 40.0), heights], 1)
    facts = {"occluded": np.array([0, 1, 2, 0] * 15), "truncated": np.array([0, 0.2, 0.4, 0] * 15), "image_boxes": image}
    names, angles = ["Car"] * 60, np.zeros(60)
    boxes[:, 1] = np.repeat(np.arange(15), 4) * 10
    truth = Truths(boxes, names, alpha=angles, **facts)
    found = Found(boxes, np.linspace(0.1, 0.9, 60), names, image_boxes=image, alpha=angles)
    with pytest.warns(UserWarning, match="Car \\(easy\\): 15"):
        rows = kitti_ap([truth], [found], camera=True)
    assert {row.difficulty: row.num_truths for row in rows} == {"easy": 15, "moderate": 30, "hard": 45}
    assert rows[2].r40 == pytest.approx(100)
    assert rows[2].aos_r40 == pytest.approx(100)
    with pytest.raises(InputError, match="frame 0: the detections have no image_boxes"):
        kitti_ap([truth], [Found(boxes, found.scores, names)], camera=True)


def test_image_metric_and_regions_without_labels() -> None:
    truths, found = frames(20)
    cars = np.array([[100.0 * i, 0, 100.0 * i + 50, 60] for i in range(5)])
    truths = [Truths(t.boxes, t.names, image_boxes=cars, dont_care=np.array([[900.0, 0, 1000, 100]])) for t in truths]
    extra = np.vstack([cars, [[910.0, 10, 950, 60]]])
    found = [Found(np.vstack([f.boxes, [box(300)]]), np.append(f.scores, 0.95), ["Car"] * 6, image_boxes=extra) for f in found]
    image, bev = kitti_ap(truths, found, metrics=("image", "bev"))
    assert image.r40 == pytest.approx(100)
    assert bev.r40 < 95


def test_neighbouring_classes_are_ignored() -> None:
    truths, found = frames(20)
    truths = [Truths(np.vstack([t.boxes, [box(100)]]), [*t.names, "Van"]) for t in truths]
    found = [Found(np.vstack([f.boxes, [box(100)]]), np.append(f.scores, 0.99), [*f.names, "Car"]) for f in found]
    rows = kitti_ap(truths, found, overlaps={"Car": 0.7})
    assert rows[0].r40 == pytest.approx(100)


def plain_counts(
    overlap: np.ndarray, truth: np.ndarray, found: np.ndarray, scores: np.ndarray, smallest: float, cut: float
) -> tuple[int, int]:
    """One frame at one threshold, candidate by candidate."""
    taken, right = set(), 0
    for t in range(len(truth)):
        if truth[t] < 0:
            continue
        able = [d for d in range(len(found)) if found[d] >= 0 and d not in taken and scores[d] >= cut and overlap[d, t] > smallest]
        counted = [d for d in able if found[d] == 0]
        if not able:
            continue
        best = max(counted, key=lambda d: (overlap[d, t], -d)) if counted else able[0]
        taken.add(best)
        right += truth[t] == 0 and found[best] == 0
    return right, sum(found[d] == 0 and d not in taken and scores[d] >= cut for d in range(len(found)))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 100_000))
def test_kitti_counts_equal_the_plain_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = [(int(rng.integers(0, 6)), int(rng.integers(0, 5))) for _ in range(4)]
    overlaps = [rng.uniform(0, 1, size).round(1) for size in sizes]
    truth = [rng.integers(-1, 2, m) for _, m in sizes]
    found = [rng.integers(-1, 2, n) for n, _ in sizes]
    scores = [rng.uniform(0, 1, n).round(1) for n, _ in sizes]
    curve = kitti_curve(overlaps, truth, found, scores, 0.45)
    raw = []
    for cut in curve.thresholds:
        counts = [plain_counts(*frame, 0.45, cut) for frame in zip(overlaps, truth, found, scores, strict=True)]
        right, wrong = np.sum(counts, 0)
        raw.append(right / max(right + wrong, 1))
    expected = [max(raw[i:]) for i in range(len(raw))]
    np.testing.assert_allclose(curve.precision[: len(raw)], expected)
    assert not curve.precision[len(raw) :].any()


def test_thresholds() -> None:
    assert score_thresholds(np.zeros(0), 0).tolist() == []
    assert score_thresholds(np.array([0.2, 0.9, 0.5]), 10).tolist() == [0.9, 0.5, 0.2]  # few objects: every score
    many = score_thresholds(np.linspace(0, 1, 4000), 4000)
    assert len(many) == 41
    np.testing.assert_allclose(many, np.linspace(1, 0, 41), atol=1e-3)


def test_ten_objects_score_low_and_say_so() -> None:
    truths, found = frames(2)
    with pytest.warns(UserWarning, match=r"fewer than 40 objects.*Car \(all\): 10"):
        row = kitti_ap(truths, found)[0]
    assert row.r11 == pytest.approx(100 * 3 / 11)  # 10 of 41 entries: the value that the page gives, 27


def test_nuscenes_errors() -> None:
    truths, found = frames(20)
    with_speed = [Truths(np.hstack([t.boxes, np.ones((5, 2))]), t.names) for t in truths]
    moved = [np.hstack([f.boxes, np.ones((5, 2))]) + np.array([0.36, 0.48, 0, 4.0, 0, 0, 0.2, 0, 1.0]) for f in found]
    shifted = [Found(boxes, f.scores, f.names) for boxes, f in zip(moved, found, strict=True)]
    result = nuscenes_ap(with_speed, shifted)
    assert result.errors == pytest.approx({"translation": 0.6, "scale": 0.5, "orientation": 0.2, "velocity": 1.0})
    assert result.rows[0].ap[1.0] == pytest.approx(100)
    assert result.rows[0].ap[0.5] == 0
    assert result.nds == pytest.approx((5 * result.mean_ap + 40 + 50 + 80 + 0) / 9)
    near = nuscenes_ap(with_speed, shifted, max_distance={"Car": 15.0})
    assert near.rows[0].num_truths == 40


def test_nothing_at_all() -> None:
    none = np.zeros((0, 7))
    empty_truth, empty_found = Truths(none, []), Found(none, np.zeros(0), [])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pair in (([], []), ([empty_truth], [empty_found])):
            assert kitti_ap(*pair) == []
            assert all(math.isnan(row.ap) for row in waymo_ap(*pair))
            assert math.isnan(nuscenes_ap(*pair).mean_ap)
    truths, found = frames(10)
    assert kitti_ap(truths, [empty_found] * 10)[0].r40 == 0
    assert waymo_ap(truths, [empty_found] * 10)[0].ap == 0
    missed = nuscenes_ap(truths, [empty_found] * 10)
    assert (missed.mean_ap, missed.nds, missed.errors["translation"]) == (0, 0, 1)
    with pytest.warns(UserWarning, match="Car"):
        rows = kitti_ap([empty_truth] * 10, found, overlaps={"Car": 0.7})
    assert math.isnan(rows[0].r40)
    assert math.isnan(nuscenes_ap([empty_truth] * 10, found, names=["Car"]).mean_ap)


def test_bad_frames() -> None:
    truths, found = frames(2)
    with pytest.raises(InputError, match="2 frames of truth with 1 frames of detections"):
        kitti_ap(truths, found[:1])
    bad = Found(found[1].boxes * np.array([1, 1, 1, -1, 1, 1, 1]), found[1].scores, found[1].names)
    for metric in (kitti_ap, waymo_ap, nuscenes_ap):
        with pytest.raises(InputError, match="frame 1, detections: row 0 has a negative size"):
            metric(truths, [found[0], bad])
        with pytest.raises(InputError, match="frame 0, truth: 5 boxes with 4 names"):
            metric([Truths(truths[0].boxes, ["Car"] * 4), truths[1]], found)
    with pytest.raises(InputError, match="scores hold NaN"):
        waymo_ap(truths, [found[0], Found(found[1].boxes, np.full(5, np.nan), found[1].names)])
    with pytest.raises(InputError, match="unknown metric '2d'"):
        kitti_ap(truths, found, metrics=("2d",))
    with pytest.raises(InputError, match="overlap of 'Car': 70"):
        waymo_ap(truths, found, overlaps={"Car": 70})


def test_definitions_say_what_differs() -> None:
    assert "1/40" in kitti_definition(camera=True)
    assert "Not comparable" in kitti_definition(camera=False)
    assert "re-implemented" in waymo_definition()
    assert "velocities are not given" in nuscenes_definition(velocity=False)
    assert "orientation, velocity" in nuscenes_definition(velocity=True)
