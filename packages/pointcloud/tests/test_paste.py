"""Object paste: what is cut out, where it is laid, and what it covers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vsuite.core.errors import InputError
from vsuite.pointcloud.boxes import overlap_bev
from vsuite.pointcloud.data.clouds import PointCloud
from vsuite.pointcloud.data.detection import read_detection, write_frame
from vsuite.pointcloud.data.frames import in_box, points_in_box_count
from vsuite.pointcloud.data.paste import CutOut, ObjectDatabase, build_database, paste_objects
from vsuite.pointcloud.data.transforms import Sample

CLASSES = ["Car", "Pedestrian"]


def cut_out(x: float, y: float, name: str = "Car", yaw: float = 0.0, count: int = 8) -> CutOut:
    box = np.array([x, y, 0, 4, 2, 1.5, yaw] if name == "Car" else [x, y, 0, 0.8, 0.8, 1.8, yaw], np.float32)
    points = np.tile(box[:3], (count, 1)) + np.random.default_rng(0).uniform(-0.3, 0.3, (count, 3))
    return CutOut(name, box, points.astype(np.float32), {"intensity": np.full(count, 7, np.float32)}, "other")


def database_of(*objects: CutOut) -> ObjectDatabase:
    database = ObjectDatabase(("intensity",))
    for item in objects:
        database.add(item)
    return database


def scene(*boxes: list[float]) -> Sample:
    rng = np.random.default_rng(1)
    points = np.column_stack([rng.uniform(-30, 30, (5000, 2)), rng.uniform(-1, 1, 5000)]).astype(np.float32)
    rows = np.array(boxes, np.float32).reshape(-1, 7)
    return Sample(points, {"intensity": rng.random(5000, np.float32), "ring": np.zeros(5000)}, rows, np.zeros(len(rows), np.int64))


def test_database_is_built_and_comes_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([[10, 0, 0, 4, 2, 2, 0.7], [20, 5, 0, 1, 1, 2, 0], [-20, 5, 0, 4, 2, 2, 0]], np.float32)
    inside = [box[:3] + rng.uniform(-0.4, 0.4, (count, 3)) for box, count in zip(boxes, (30, 6, 4), strict=True)]
    points = np.concatenate([*inside, rng.uniform(30, 50, (100, 3))]).astype(np.float32)
    write_frame(tmp_path, "a", PointCloud(points, {"intensity": np.arange(140, dtype=np.float32)}), boxes, ["Car", "Pedestrian", "Car"])
    database = build_database(read_detection(tmp_path).frames, classes=CLASSES)
    assert {name: [len(o.points) for o in objects] for name, objects in database.objects.items()} == {"Car": [30], "Pedestrian": [6]}
    np.testing.assert_array_equal(database.objects["Pedestrian"][0].columns["intensity"], np.arange(30, 36))
    database.save(tmp_path / "objects.npz")
    back = ObjectDatabase.load(tmp_path / "objects.npz")
    assert back.columns == ("intensity",)
    for name, objects in database.objects.items():
        for before, after in zip(objects, back.objects[name], strict=True):
            assert before.source == after.source == "a"
            np.testing.assert_array_equal(before.box, after.box)
            np.testing.assert_array_equal(before.points, after.points)
            np.testing.assert_array_equal(before.columns["intensity"], after.columns["intensity"])
    with pytest.raises(InputError, match="no Tram with 5 or more points"):
        build_database(read_detection(tmp_path).frames, classes=["Tram"])
    np.savez(tmp_path / "bad.npz", names=np.zeros(3))
    with pytest.raises(InputError, match="not a database of objects"):
        ObjectDatabase.load(tmp_path / "bad.npz")


def test_pasted_objects_replace_what_they_cover() -> None:
    before = scene([0, 0, 0, 4, 2, 1.5, 0])
    item = cut_out(10, 10, yaw=0.5)
    after = paste_objects(before, database_of(item), np.random.default_rng(0), {"Car": 1}, CLASSES)
    assert after.boxes is not None
    assert after.labels is not None
    np.testing.assert_array_equal(after.boxes, np.stack([before.boxes[0], item.box]))
    assert after.labels.tolist() == [0, 0]
    covered = in_box(before.points, item.box).sum()
    assert covered > 0
    assert len(after) == 5000 - covered + 8
    assert points_in_box_count(after.points, item.box[None]).tolist() == [8]
    np.testing.assert_array_equal(after.columns["intensity"][-8:], 7)
    assert list(after.columns) == ["intensity"]


def test_collisions_are_left_out() -> None:
    before = scene([0, 0, 0, 4, 2, 1.5, 0])
    free, hit = cut_out(0, 2.5), cut_out(3, 1.5)
    for objects, expected in (((free,), 2), ((hit,), 1), ((free, cut_out(0.5, 3.0)), 2)):
        after = paste_objects(before, database_of(*objects), np.random.default_rng(0), {"Car": 5}, CLASSES)
        assert after.boxes is not None
        assert len(after.boxes) == expected
    unchanged = paste_objects(before, database_of(hit), np.random.default_rng(0), {"Car": 5}, CLASSES)
    assert unchanged is before


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 12), st.integers(0, 12))
def test_nothing_ever_overlaps(seed: int, cars: int, people: int) -> None:
    rng = np.random.default_rng(seed)
    objects = [cut_out(*rng.uniform(-12, 12, 2), name=CLASSES[i % 2], yaw=rng.uniform(-3, 3)) for i in range(24)]
    after = paste_objects(scene([0, 0, 0, 4, 2, 1.5, 0.3]), database_of(*objects), rng, {"Car": cars, "Pedestrian": people}, CLASSES)
    assert after.boxes is not None
    assert after.labels is not None
    overlaps = overlap_bev(torch.from_numpy(after.boxes), torch.from_numpy(after.boxes)).numpy()
    assert (overlaps - np.diag(np.diag(overlaps))).max() < 1e-3
    assert 1 + cars >= (after.labels == 0).sum()
    assert people >= (after.labels == 1).sum()
    assert (points_in_box_count(after.points, after.boxes)[1:] == 8).all()


def test_into_an_empty_scene_and_without_objects() -> None:
    after = paste_objects(scene(), database_of(cut_out(5, 5, "Pedestrian")), np.random.default_rng(0), {"Pedestrian": 3, "Car": 2}, CLASSES)
    assert after.labels is not None
    assert after.labels.tolist() == [1]
    with pytest.raises(InputError, match="unknown class to paste 'Cra'; did you mean 'Car'"):
        paste_objects(scene(), database_of(), np.random.default_rng(0), {"Cra": 1}, CLASSES)
    wide = scene()
    wide = Sample(wide.points, wide.columns, np.zeros((0, 9), np.float32), wide.labels)
    after = paste_objects(wide, database_of(cut_out(5, 5)), np.random.default_rng(0), {"Car": 1}, CLASSES)
    assert after.boxes is not None
    assert np.isnan(after.boxes[0, 7:]).all()
