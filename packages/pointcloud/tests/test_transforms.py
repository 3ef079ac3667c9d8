"""Augmentations: boxes, velocities and normals follow the points, placements can be undone, and names and options are checked."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.pointcloud.data import transforms
from vsuite.pointcloud.data.frames import in_box
from vsuite.pointcloud.data.transforms import TRANSFORMS, Placement, Sample, compose, rotation_matrix, views

placements = st.builds(
    Placement,
    angle=st.floats(-3.1, 3.1),
    scale=st.floats(0.5, 2),
    flip_x=st.booleans(),
    flip_y=st.booleans(),
    shift=st.tuples(*[st.floats(-5, 5)] * 3),
)


def street(seed: int = 0, count: int = 400) -> Sample:
    """Three boxes, of which each has points, normals along its heading, and a velocity along it."""
    rng = np.random.default_rng(seed)
    boxes = np.column_stack(
        [rng.uniform(-30, 30, (3, 2)), rng.uniform(-1, 1, 3), rng.uniform(2, 5, 3), rng.uniform(1, 2, (3, 2)), rng.uniform(-3, 3, 3)]
    )
    headings = np.column_stack([np.cos(boxes[:, 6]), np.sin(boxes[:, 6])])
    boxes = np.column_stack([boxes, 2 * headings]).astype(np.float32)
    owner = rng.integers(0, 3, count)
    offsets = rng.uniform(-0.49, 0.49, (count, 3)) * boxes[owner, 3:6]
    along, across = headings[owner], headings[owner][:, ::-1] * [-1, 1]
    points = boxes[owner, :3].copy()
    points[:, :2] += offsets[:, :1] * along + offsets[:, 1:2] * across
    points[:, 2] += offsets[:, 2]
    columns = {"nx": along[:, 0], "ny": along[:, 1], "nz": np.zeros(count), "owner": owner, "intensity": rng.random(count)}
    return Sample(points.astype(np.float32), columns, boxes, np.array([0, 1, 0]))


def check_together(sample: Sample) -> None:
    """Each point is still in its box, the normals still look along its heading, and it still drives there."""
    assert sample.boxes is not None
    for i, box in enumerate(sample.boxes):
        assert in_box(sample.points[sample.columns["owner"] == i], box, 1e-3).all()
        heading = np.array([np.cos(box[6]), np.sin(box[6])])
        np.testing.assert_allclose(box[7:] / np.linalg.norm(box[7:]), heading, atol=1e-4)
        normals = np.column_stack([sample.columns[name] for name in ("nx", "ny", "nz")])[sample.columns["owner"] == i]
        np.testing.assert_allclose(normals, np.tile([*heading, 0], (len(normals), 1)), atol=1e-4)


@settings(max_examples=50, deadline=None)
@given(placements)
def test_boxes_follow_points(placement: Placement) -> None:
    moved = placement.apply(street())
    check_together(moved)
    assert moved.boxes is not None
    assert street().boxes is not None
    np.testing.assert_allclose(moved.boxes[:, 3:6], street().boxes[:, 3:6] * placement.scale, rtol=1e-5)
    assert (np.abs(moved.boxes[:, 6]) <= np.float32(np.pi)).all()


@settings(max_examples=50, deadline=None)
@given(placements)
def test_placements_can_be_undone(placement: Placement) -> None:
    sample = street()
    assert sample.boxes is not None
    moved = placement.apply(sample)
    assert moved.boxes is not None
    np.testing.assert_allclose(placement.undo_points(moved.points), sample.points, atol=2e-4)
    back = placement.undo_boxes(moved.boxes)
    np.testing.assert_allclose(back[:, [0, 1, 2, 3, 4, 5, 7, 8]], sample.boxes[:, [0, 1, 2, 3, 4, 5, 7, 8]], atol=2e-4)
    np.testing.assert_allclose(np.cos(back[:, 6] - sample.boxes[:, 6]), 1, atol=1e-6)


@pytest.mark.parametrize("name", ["random_rotation", "quarter_turns", "random_scale", "random_shift", "random_flip", "centre_shift"])
def test_random_movements(name: str) -> None:
    changed = 0
    for seed in range(5):
        moved = TRANSFORMS[name](street(), np.random.default_rng(seed))
        check_together(moved)
        again = TRANSFORMS[name](street(), np.random.default_rng(seed))
        np.testing.assert_array_equal(moved.points, again.points)
        changed += not np.array_equal(moved.points, street().points)
    assert changed >= 3


def test_movements_by_hand() -> None:
    point = Sample(np.array([[1, 2, 3]], np.float32), boxes=np.array([[1, 2, 3, 4, 2, 1, 0.5]], np.float32))
    assert Placement(flip_y=True).apply(point).points.tolist() == [[1, -2, 3]]
    np.testing.assert_allclose(Placement(flip_y=True).apply_boxes(point.boxes)[0], [1, -2, 3, 4, 2, 1, -0.5], rtol=1e-6)
    np.testing.assert_allclose(Placement(flip_x=True).apply_boxes(point.boxes)[0, 6], np.pi - 0.5, rtol=1e-6)
    np.testing.assert_allclose(Placement(angle=np.pi / 2).apply(point).points, [[-2, 1, 3]], atol=1e-6)
    np.testing.assert_allclose(rotation_matrix("x", np.pi / 2) @ [0, 1, 0], [0, 0, 1], atol=1e-12)
    np.testing.assert_allclose(rotation_matrix("y", np.pi / 2) @ [0, 0, 1], [1, 0, 0], atol=1e-12)
    np.testing.assert_allclose(rotation_matrix("z", np.pi / 2) @ [1, 0, 0], [0, 1, 0], atol=1e-12)


def test_where_rotations_turn_about() -> None:
    sample = replace(street(), boxes=None)
    middle = (sample.points.min(0) + sample.points.max(0)) / 2
    turned = transforms.random_rotation(sample, np.random.default_rng(1))
    radius = np.linalg.norm(sample.points[:, :2] - middle[:2], axis=1)
    np.testing.assert_allclose(np.linalg.norm(turned.points[:, :2] - middle[:2], axis=1), radius, atol=1e-4)
    about_sensor = transforms.random_rotation(sample, np.random.default_rng(1), about="origin", degrees=45)
    np.testing.assert_allclose(np.linalg.norm(about_sensor.points, axis=1), np.linalg.norm(sample.points, axis=1), rtol=1e-5)
    upright = transforms.random_rotation(sample, np.random.default_rng(1), axis="y")
    np.testing.assert_allclose(upright.points[:, 1], sample.points[:, 1], atol=1e-5)


def test_views() -> None:
    assert len(views(turns=(0, 90), scales=(0.95, 1.0, 1.05), flips=True)) == 24
    assert views() == [Placement()]
    np.testing.assert_allclose(views(turns=(90,))[0].apply(Sample(np.array([[1, 0, 0]], np.float32))).points, [[0, 1, 0]], atol=1e-7)


def test_shapes_are_normalised() -> None:
    sample = transforms.unit_sphere(replace(street(), boxes=None), np.random.default_rng(0))
    np.testing.assert_allclose(sample.points.mean(0), 0, atol=1e-5)
    assert np.linalg.norm(sample.points, axis=1).max() == pytest.approx(1)
    same = transforms.unit_sphere(Sample(np.full((5, 3), 7, np.float32)), np.random.default_rng(0))
    np.testing.assert_array_equal(same.points, 0)
    shifted = transforms.centre_shift(replace(street(), boxes=None), np.random.default_rng(0))
    np.testing.assert_allclose([*(shifted.points.min(0) + shifted.points.max(0))[:2], shifted.points.min(0)[2]], 0, atol=1e-5)


def test_anisotropic_scale_keeps_normals_upright_on_the_surface() -> None:
    """Normals of a plane stay perpendicular to it."""
    rng = np.random.default_rng(0)
    normal = np.array([1.0, 2, 2]) / 3
    spanning = np.linalg.svd(normal[None])[2][1:]
    points = rng.normal(size=(50, 2)) @ spanning
    sample = Sample(points.astype(np.float32), {name: np.full(50, value) for name, value in zip(("nx", "ny", "nz"), normal, strict=True)})
    scaled = transforms.random_scale(sample, rng, low=0.5, high=2, per_axis=True)
    normals = np.column_stack([scaled.columns[name] for name in ("nx", "ny", "nz")])
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose((scaled.points[1:] - scaled.points[0]) @ normals[0], 0, atol=1e-5)


def test_points_that_are_changed() -> None:
    sample, rng = replace(street(count=1000), boxes=None), np.random.default_rng(0)
    noise = transforms.jitter(sample, rng, sigma=0.03).points - sample.points
    assert np.abs(noise).max() <= 0.0501
    assert 0.02 < noise.std() < 0.03
    assert len(transforms.random_dropout(sample, rng, ratio=0.2, probability=1)) == 800
    assert transforms.random_dropout(sample, rng, probability=0) is sample
    copied = transforms.dropout_to_first(sample, np.random.default_rng(2))
    dropped = (copied.points == sample.points[0]).all(1)
    assert len(copied) == 1000
    assert 0 < dropped.sum() < 900
    np.testing.assert_array_equal(copied.points[~dropped], sample.points[~dropped])
    assert sorted(transforms.shuffle(sample, rng).columns["intensity"]) == sorted(sample.columns["intensity"])


def test_sphere_crop_keeps_the_nearest() -> None:
    sample = replace(street(count=500), boxes=None)
    cropped = transforms.sphere_crop(sample, np.random.default_rng(5), most=100)
    assert len(cropped) == 100
    centre = sample.points[np.random.default_rng(5).integers(500)]
    expected = np.sort(np.linalg.norm(sample.points - centre, axis=1))[:100]
    np.testing.assert_allclose(np.sort(np.linalg.norm(cropped.points - centre, axis=1)), expected, rtol=1e-5)
    assert transforms.sphere_crop(sample, np.random.default_rng(5), most=500) is sample


def test_elastic_distortion_is_smooth_and_bounded() -> None:
    grid = np.stack(np.meshgrid(*[np.linspace(0, 2, 12)] * 3, indexing="ij"), -1).reshape(-1, 3).astype(np.float32)
    bent = transforms.elastic_distortion(Sample(grid), np.random.default_rng(0)).points
    moved = bent - grid
    assert 0.01 < np.abs(moved).max() < 2
    near = moved.reshape(12, 12, 12, 3)
    assert np.abs(np.diff(near, axis=0)).mean() < 0.5 * np.abs(near - near.mean((0, 1, 2))).mean() * 2


def test_range_crop() -> None:
    sample = transforms.range_crop(street(), np.random.default_rng(0), bounds=[-10, -40, -5, 30, 40, 5])
    assert sample.boxes is not None
    assert sample.labels is not None
    assert len(sample.boxes) == len(sample.labels) < 3
    assert (sample.points[:, 0] >= -10).all()


def test_colours() -> None:
    rng = np.random.default_rng(0)
    sample = Sample(np.zeros((50, 3), np.float32), {name: rng.integers(100, 150, 50).astype(np.uint8) for name in ("red", "green", "blue")})
    everything = compose([{"name": name, "probability": 1} for name in ("colour_contrast", "colour_translation", "colour_jitter")])
    changed = everything(sample, np.random.default_rng(1))
    assert changed.columns["red"].std() > sample.columns["red"].std()
    assert all(0 <= changed.columns[name].min() <= changed.columns[name].max() <= 255 for name in ("red", "green", "blue"))
    assert transforms.colour_drop(sample, rng, probability=1).columns["blue"].max() == 0
    with pytest.raises(InputError, match="has no column red, green, blue"):
        transforms.colour_drop(Sample(sample.points), rng, probability=1)


def test_mix() -> None:
    both = transforms.mix(street(0), street(1))
    assert both.boxes is not None
    assert (len(both), len(both.boxes), list(both.columns)) == (800, 6, list(street().columns))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_clouds_of_no_point_and_of_one(name: str) -> None:
    options: dict[str, Any] = {"bounds": [-1, -1, -1, 1, 1, 1]} if name == "range_crop" else {}
    columns = {column: np.zeros(1, np.float32) for column in ("red", "green", "blue")}
    for count in (0, 1):
        if count == 0 and name in ("grid_sampling", "colour_contrast"):
            continue
        sample = Sample(np.zeros((count, 3), np.float32), {column: values[:count] for column, values in columns.items()})
        for seed in range(3):
            assert len(TRANSFORMS[name](sample, np.random.default_rng(seed), **options)) == count


def test_names_and_options() -> None:
    run = compose(["random_flip", {"name": "random_scale", "low": 2.0, "high": 2.0}, "shuffle"])
    sample = run(street(), np.random.default_rng(0))
    np.testing.assert_array_equal(sample.points, run(street(), np.random.default_rng(0)).points)
    assert sorted(np.abs(sample.points[:, 0])) == pytest.approx(sorted(2 * np.abs(street().points[:, 0])), rel=1e-5)
    with pytest.raises(InputError, match="unknown transform 'random_flop'; did you mean 'random_flip'"):
        compose(["random_flop"])
    with pytest.raises(InputError, match="unknown option of jitter 'sgima'; did you mean 'sigma'"):
        compose([{"name": "jitter", "sgima": 1}])
    with pytest.raises(InputError, match="boxes cannot follow"):
        transforms.random_scale(street(), np.random.default_rng(0), per_axis=True)
    with pytest.raises(InputError, match="unknown axis 'w'"):
        transforms.random_rotation(street(), np.random.default_rng(0), axis="w")
