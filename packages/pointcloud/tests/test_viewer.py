"""Scenes, colours and pictures of the viewer, by what they must show."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.pointcloud.viewer import ClassColours, LazyScenes, Scene, bird_eye, colour_choices, render, save_page, save_picture
from vsuite.pointcloud.viewer.colours import BACKGROUNDS, COLOUR_MAP, ERRORS, NOTHING, colour_range, point_colours
from vsuite.pointcloud.viewer.geometry import box_lines, first_camera, thinning_order
from vsuite.pointcloud.viewer.picking import box_facts, pick_box, pick_point, point_facts
from vsuite.pointcloud.viewer.picture import bar_length, from_above

CAR = np.array([[10.0, 2.0, 0.0, 4.0, 2.0, 1.5, 0.5]], np.float32)


def street(**more: object) -> Scene:
    rng = np.random.default_rng(0)
    ground = np.column_stack([rng.uniform(-5, 30, (2000, 2)) - (0, 12), np.full(2000, -1.0)])
    car = CAR[0, :3] + rng.uniform(-0.3, 0.3, (300, 3))
    return Scene("street", np.concatenate([ground, car]), **more)  # type: ignore[arg-type]


def share(image: np.ndarray, colour: tuple[int, int, int], tolerance: int = 12) -> float:
    return float((np.abs(image.astype(int) - colour).max(2) <= tolerance).mean())


def test_boxes_come_in_order_of_score_with_their_labels() -> None:
    boxes = np.tile(CAR, (3, 1)) + np.arange(3, dtype=np.float32)[:, None] * [1, 0, 0, 0, 0, 0, 0]
    scene = Scene("s", np.zeros((1, 3)), boxes=boxes, box_labels=["a", "b", "c"], box_scores=np.array([0.2, 0.9, 0.5]))
    assert list(scene.box_labels) == ["b", "c", "a"]
    assert scene.boxes[:, 0].tolist() == [11, 12, 10]
    assert scene.shown_boxes(0.5).tolist() == [True, True, False]
    assert scene.shown_boxes(0.0, hidden=["b"]).tolist() == [False, True, True]
    assert Scene("s", np.zeros((1, 3)), boxes=boxes).shown_boxes(1.0).all(), "boxes without scores are never hidden"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"points": np.zeros((4, 2))}, "rows x y z"),
        ({"points": np.full((4, 3), np.nan)}, "4 points have NaN"),
        ({"columns": {"intensity": np.zeros(3)}}, "intensity"),
        ({"boxes": CAR, "box_scores": np.zeros(2)}, "scores"),
        ({"boxes": CAR, "box_labels": ["a", "b"]}, "2 class names"),
        ({"truth_boxes": CAR * [1, 1, 1, -1, 1, 1, 1]}, "negative size"),
        ({"point_labels": np.zeros(3)}, "label"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(wrong: dict[str, np.ndarray], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        Scene(**{"name": "frame 7", "points": np.zeros((4, 3)), **wrong})  # type: ignore[arg-type]
    assert "frame 7" in str(error.value)


@given(st.integers(0, 3000), st.integers(0, 3000))
def test_the_thinning_order_visits_every_row_once_and_begins_alike(count: int, most: int) -> None:
    assert sorted(thinning_order(count).tolist()) == list(range(count))
    assert thinning_order(count, most).tolist() == thinning_order(count)[:most].tolist()


def test_a_thinned_cloud_is_spread_over_the_whole_one() -> None:
    counts = np.histogram(thinning_order(200_000, 40_000), bins=20)[0]
    assert counts.min() > 1800
    assert counts.max() < 2200


@given(st.floats(-50, 50), st.floats(-math.pi, math.pi), st.tuples(*[st.floats(0.1, 20)] * 3))
def test_lines_of_a_box_have_its_lengths_and_point_along_its_heading(x: float, yaw: float, size: tuple[float, float, float]) -> None:
    lines = box_lines(np.array([[x, 1, 2, *size, yaw]], np.float32))[0].astype(np.float64)
    lengths = np.linalg.norm(lines[:, 1] - lines[:, 0], axis=1)
    np.testing.assert_allclose(sorted(lengths[:12]), sorted(list(size) * 4), atol=1e-3)
    tick = lines[12, 1] - lines[12, 0]
    np.testing.assert_allclose(tick, size[0] * 0.7 * np.array([math.cos(yaw), math.sin(yaw), 0]), atol=1e-3)


def test_height_runs_through_the_colour_map_and_numbers_that_are_none_are_grey() -> None:
    points = np.column_stack([np.zeros((101, 2)), np.arange(101)])
    scene = Scene("s", points, columns={"intensity": np.where(np.arange(101) == 3, np.nan, 1.0)})
    colours = point_colours(scene, "height", ClassColours(), span=(0, 100))
    assert (colours[0] == COLOUR_MAP[0]).all()
    assert (colours[100] == COLOUR_MAP[255]).all()
    assert tuple(point_colours(scene, "intensity", ClassColours())[3]) == NOTHING
    assert colour_range(np.array([])) == (0.0, 1.0)
    assert colour_range(np.array([2.0, np.inf, 2.0])) == (2.0, 3.0)


def test_errors_of_boxes_say_which_points_were_found_missed_and_made_up() -> None:
    away, wrong, made_up = (CAR + np.array([*offset, 0, 0, 0, 0, 0, 0]) for offset in ((20,), (-20,), (-40,)))
    points = np.concatenate([CAR[:, :3], away[:, :3], wrong[:, :3], made_up[:, :3], [[0, 0, 90]]])
    scene = Scene(
        "s", points,
        truth_boxes=np.concatenate([CAR, away, wrong]), truth_labels=["Car"] * 3,
        boxes=np.concatenate([CAR, wrong, made_up]), box_labels=["Car", "Van", "Car"], box_scores=np.array([0.9, 0.8, 0.4]),
    )  # fmt: skip
    expected = [ERRORS[name] for name in ("found", "missed", "wrong class", "false alarm")]
    assert [tuple(row) for row in point_colours(scene, "error", ClassColours())] == [*expected, NOTHING]
    above = [tuple(row) for row in point_colours(scene, "error", ClassColours(), threshold=0.85)]
    assert above == [expected[0], expected[1], expected[1], NOTHING, NOTHING]
    assert tuple(point_colours(scene, "prediction", classes := ClassColours())[2]) == classes["Van"]


def test_errors_of_labels_are_where_the_prediction_differs() -> None:
    scene = Scene(
        "s", np.zeros((3, 3)), columns={"label": np.array([0, 1, -1]), "prediction": np.array([0, 2, 1])}, label_names=["road", "car"]
    )
    assert colour_choices(scene) == ["height", "label", "prediction", "error"]
    assert [tuple(row) for row in point_colours(scene, "error", ClassColours())] == [ERRORS["right"], ERRORS["wrong"], NOTHING]
    assert scene.class_names == ["road", "car", "2"]
    with pytest.raises(InputError, match="intensity"):
        point_colours(scene, "intensity", ClassColours())


def test_a_class_has_the_same_colour_in_every_view() -> None:
    assert ClassColours(["tree", "Car"])["car"] == ClassColours()["Car"]
    many = ClassColours([f"class {k}" for k in range(16)])
    assert len(set(many.values())) == 16


@pytest.mark.parametrize("dark", [True, False])
def test_a_picture_shows_points_boxes_and_what_the_threshold_leaves(dark: bool) -> None:
    scene = street(boxes=CAR, box_labels=["car"], box_scores=np.array([0.6]))
    both, without = render(scene, size=(640, 400), dark=dark), render(scene, size=(640, 400), dark=dark, threshold=0.7)
    orange = ClassColours()["car"]
    assert share(both, orange) > 0.001
    assert share(without, orange) < share(both, orange) / 4
    assert share(both, BACKGROUNDS[dark]) > 0.3
    assert share(both, tuple(COLOUR_MAP[0].tolist()), 40) > 0.002, "the ground is blue"


def test_the_nearer_point_covers_the_farther_whatever_their_order() -> None:
    position, target = first_camera(Scene("s", np.array([[0, 0, 0], [1, 1, 1]], np.float32)))
    from vsuite.pointcloud.viewer.picture import draw_points, look_at

    aside = target + np.array([0.1, 0.07, 0.03])  # the middle of the picture lies between pixels: rounding would choose one
    points = np.stack([position + (aside - position) * part for part in (0.5, 0.8)])
    colours = np.array([[255, 0, 0], [0, 255, 0]], np.uint8)
    for order in ([0, 1], [1, 0]):
        image = np.zeros((64, 64, 3), np.uint8)
        draw_points(image, look_at(position, target, (64, 64)), points[order], colours[order], 3)
        assert share(image, (255, 0, 0)) == 9 / 64**2
        assert share(image, (0, 255, 0)) == 0


def test_from_above_ahead_is_up_and_left_is_left() -> None:
    box = np.array([[8.0, 6.0, 0, 3, 2, 1, 0]], np.float32)
    image = bird_eye(np.zeros((0, 3)), truth=box, found=CAR[:0], extent=(-10, -10, 10, 10), size=(200, 200))
    other = bird_eye(np.zeros((0, 3)), extent=(-10, -10, 10, 10), size=(200, 200))
    rows, columns = np.nonzero((image != other).any(2))
    assert rows.max() < 60
    assert columns.max() < 80


def test_a_legend_and_a_scale_bar_from_above() -> None:
    far = np.array([[8.0, -6.0, 0, 1, 1, 1, 0], [8.0, -8.0, 0, 1, 1, 1, 0], [6.0, -6.0, 0, 1, 1, 1, 0]], np.float32)
    options: dict[str, Any] = {"extent": (-10, -10, 10, 10), "size": (400, 400), "scores": np.array([0.9, 0.8, 0.1]), "threshold": 0.2}
    image = bird_eye(np.zeros((0, 3)), found=far, found_labels=["Car", "Pedestrian", "Cyclist"], **options)
    classes = ClassColours()
    corner = image[:60, :40]  # the boxes lie on the right
    for name, pixels in (("Car", 12 * 12), ("Pedestrian", 12 * 12), ("Cyclist", 0)):
        assert (corner == classes[name]).all(-1).sum() == pixels
    # 376 pixels are 20 m: a quarter of the width is 5.3 m, so the bar has 5, that is 94 pixels.
    line = np.flatnonzero((image[400 - 12 - 1] == 255).all(-1))
    assert (line.min(), line.max()) == (400 - 12 - 94, 400 - 12)
    assert [bar_length(from_above((0, 0), (side, side), (400, 400)), 400) for side in (4, 90, 200)] == [1, 20, 50]


def test_a_legend_hides_nothing_but_what_it_writes_on_and_ends_before_the_picture() -> None:
    box = np.array([[8.3, 6.0, 0, 3, 6, 1, 0]], np.float32)  # its front edge runs through the legend's only row
    options: dict[str, Any] = {"extent": (-10, -10, 10, 10), "size": (400, 400)}
    image = bird_eye(np.zeros((0, 3)), found=box, found_labels=["Car"], scores=np.ones(1), **options)
    assert (image[:24, 60:140] == ClassColours()["Car"]).all(-1).any(0).all()  # right of the name
    names = [f"kind {i}" for i in range(40)]
    far = np.repeat(np.array([[-9.0, -9.0, 0, 0.1, 0.1, 0.1, 0]], np.float32), 40, 0)
    blank = bird_eye(np.zeros((0, 3)), **options)
    many = bird_eye(np.zeros((0, 3)), found=far, found_labels=names, scores=np.ones(40), **options)
    rows, _ = np.nonzero((many != blank)[:, :300].any(-1))
    assert 250 < rows.max() < 400 - 60


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 3), st.booleans(), st.floats(0, 1), st.sampled_from(["orbit", "top"]))
def test_clouds_of_no_and_few_points_can_be_looked_at(count: int, boxes: bool, threshold: float, view: str) -> None:
    scene = Scene("s", np.ones((count, 3)), truth_boxes=CAR if boxes else CAR[:0])
    assert render(scene, view=view, size=(96, 80), threshold=threshold).shape == (80, 96, 3)  # type: ignore[arg-type]
    assert bird_eye(scene.points, found=scene.truth_boxes).shape == (640, 640, 3)


def test_a_saved_picture_is_the_rendered_one(tmp_path: Path) -> None:
    import cv2

    save_picture(street(), tmp_path / "street.png", size=(320, 240))
    stored = cv2.imread(str(tmp_path / "street.png"))
    assert (stored[..., ::-1] == render(street(), size=(320, 240))).all()
    with pytest.raises(InputError, match="64 to 8192"):
        save_picture(street(), tmp_path / "huge.png", size=(9000, 100))
    with pytest.raises(InputError, match="did you mean 'height'"):
        save_picture(street(), tmp_path / "huge.png", colour="heigth")
    assert not (tmp_path / "huge.png").exists()
    with pytest.raises(InputError, match=r"street\.jpg: its name must end in \.png"):
        save_picture(street(), tmp_path / "street.jpg")
    with pytest.raises(InputError, match=r"street\.txt: its name must end in \.html or \.htm"):
        save_page([street()], tmp_path / "street.txt")


def test_picking_gives_the_nearest_point_and_the_box_the_ray_enters() -> None:
    scene = street(columns={"intensity": np.arange(2300) / 10}, boxes=CAR, box_labels=["Car"], box_scores=np.array([0.75]))
    origin, goal = np.array([-10.0, 0, 5]), scene.points[2100]
    point = pick_point(scene.points, origin, goal - origin)
    assert point is not None
    assert np.linalg.norm(scene.points[point] - goal) < 0.4
    assert ("intensity", f"{point / 10:.6g}") in point_facts(scene, point)
    assert pick_point(scene.points, origin, np.array([0, 0, 1.0])) is None
    found = pick_box(scene.boxes, np.array([True]), origin, CAR[0, :3] - origin)
    assert found is not None
    assert 0.7 < found[1] < 1
    assert pick_box(scene.boxes, np.array([False]), origin, CAR[0, :3] - origin) is None
    facts = dict(box_facts(scene, 0))
    assert facts["box"] == "Car"
    assert facts["score"] == "0.750"
    assert facts["points inside"] == "300"


def test_lazy_scenes_are_read_when_looked_at() -> None:
    read: list[int] = []
    scenes = LazyScenes([f"{k}" for k in range(20)], lambda k: (read.append(k), Scene(str(k), np.zeros((1, 3))))[1])
    assert len(scenes) == 20
    assert read == []
    assert scenes[-1].name == "19"
    assert scenes[19].name == "19"
    assert read == [19]
    assert [scene.name for scene in scenes[3:5]] == ["3", "4"]


def test_a_real_sweep_shows_its_cars() -> None:
    root = Path(os.environ.get("VSUITE_DATA", Path(__file__).parents[4] / "shared/data")) / "lidar/kitti"
    if not root.is_dir():
        pytest.skip(f"no real sweep at {root}; VSUITE_DATA names the folder")
    points = np.fromfile(root / "000008.bin", np.float32).reshape(-1, 4)
    rows = json.loads((root / "000008.json").read_text())["boxes"]
    scene = Scene("000008", points[:, :3], truth_boxes=np.array([row["box"] for row in rows]), truth_labels=[row["label"] for row in rows])
    inside = [int(dict(box_facts(scene, index, truth=True))["points inside"]) for index in range(len(rows))]
    assert len(rows) == 6
    assert min(inside) > 20, "every box holds points of its car"
    colours = point_colours(scene, "label", classes := ClassColours())
    assert (colours == classes["Car"]).all(1).sum() >= max(inside)
    assert share(render(scene, size=(640, 400)), classes["Car"]) > 0.002
