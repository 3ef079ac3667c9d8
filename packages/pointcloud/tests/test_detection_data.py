"""Detection data sets: boxes of every layout in one convention, back again exactly, and everything wrong said at once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vsuite.core.errors import InputError
from vsuite.pointcloud.data import boxes_io, kitti
from vsuite.pointcloud.data.boxes_io import Boxes
from vsuite.pointcloud.data.calibration import Calibration, box_corners, move, read_calibration
from vsuite.pointcloud.data.clouds import PointCloud, write_cloud
from vsuite.pointcloud.data.detection import check_dataset, read_detection, write_frame, write_split
from vsuite.pointcloud.data.frames import check_labels_fit, in_box
from vsuite.pointcloud.data.nuscenes import quaternion_matrix, read_nuscenes
from vsuite.pointcloud.data.waymo import TANH, read_sweep, read_waymo

KITTI_LABEL = (
    "Car 0.88 3 -0.69 0.00 192.37 402.31 374.00 1.60 1.57 3.23 -2.70 1.74 3.68 -1.29\n"
    "Car 0.00 1 2.04 334.85 178.94 624.50 372.04 1.57 1.50 3.68 -1.17 1.65 7.86 1.90\n"
    "DontCare -1 -1 -10 800.38 163.67 825.45 184.07 -1 -1 -1 -1000 -1000 -1000 -10\n"
)
TILT = np.array([[0.0, -1, -0.01], [0.01, 0.01, -1], [1, 0.0, 0.01]])
CALIB = (
    "P0: 1 0 0 0 0 1 0 0 0 0 1 0\nP2: 721.5377 0 609.5593 44.85728 0 721.5377 172.854 0.2163791 0 0 1 0.002745884\n"
    "R0_rect: 1 0 0 0 1 0 0 0 1\n"
    "Tr_velo_to_cam: 0.0002 -0.99994 -0.0106 -0.0028 0.0104 0.0106 -0.99989 -0.0751 0.99995 0.0001 0.0105 -0.2721\n"
    "Tr_imu_to_velo: 1 0 0 0 0 1 0 0 0 0 1 0\n"
)


def lidar_data(name: str) -> Path:
    root = Path(os.environ.get("VSUITE_DATA", Path(__file__).parents[4] / "shared" / "data"))
    path = root / "lidar" / name
    if not path.exists():
        pytest.skip(f"no real sweep at {path}; VSUITE_DATA names the folder")
    return path


def sweep(count: int = 200, seed: int = 0) -> PointCloud:
    rng = np.random.default_rng(seed)
    points = np.column_stack([rng.uniform(2, 40, count), rng.uniform(-10, 10, count), rng.uniform(-2, 1, count)])
    return PointCloud(points.astype(np.float32), {"intensity": rng.random(count, np.float32)})


def make_kitti(root: Path, names: tuple[str, ...] = ("000001", "000002"), label: str = KITTI_LABEL) -> Path:
    for folder in ("velodyne", "calib", "label_2"):
        (root / "training" / folder).mkdir(parents=True)
    for name in names:
        write_cloud(root / "training" / "velodyne" / f"{name}.bin", sweep())
        (root / "training" / "calib" / f"{name}.txt").write_text(CALIB)
        (root / "training" / "label_2" / f"{name}.txt").write_text(label)
    write_split(root, "train", names[:1])
    return root


boxes_strategy = st.lists(
    st.tuples(*(st.floats(low, high) for low, high in ((-70, 70), (-70, 70), (-3, 3), (0.3, 15), (0.3, 4), (0.3, 5), (-3.14, 3.14)))),
    min_size=1, max_size=6,
).map(lambda rows: np.array(rows, np.float32))  # fmt: skip


def near(a: np.ndarray, b: np.ndarray, tolerance: float = 2e-5) -> None:
    """Boxes are equal, angles up to full turns."""
    np.testing.assert_allclose(a[:, :6], b[:, :6], atol=tolerance, rtol=1e-6)
    np.testing.assert_allclose(np.cos(a[:, 6] - b[:, 6]), 1, atol=1e-6)
    np.testing.assert_allclose(a[:, 7:], b[:, 7:], atol=1e-4)


# --- KITTI ---


def test_kitti(tmp_path: Path) -> None:
    data = read_detection(make_kitti(tmp_path))
    assert (data.layout, data.class_names, [frame.name for frame in data.frames]) == ("kitti", ["Car"], ["000001", "000002"])
    frame = data.frames[0]
    assert frame.boxes is not None
    assert frame.boxes.shape == (2, 7)
    assert frame.boxes.dtype == np.float32
    np.testing.assert_array_equal(frame.attributes["difficulty"], [-1, 1])
    np.testing.assert_allclose(frame.boxes[0, 3:6], [3.23, 1.57, 1.60])
    assert [frame.name for frame in read_detection(tmp_path, "train").frames] == ["000001"]
    assert [frame.name for frame in read_detection(tmp_path / "training", "train").frames] == ["000001"]
    np.testing.assert_array_equal(frame.read().points, sweep().points)


def test_kitti_boxes_of_the_real_frame() -> None:
    """The labels of KITTI's frame 000008 come out where the boxes given with the sweep are, which hold as many points as is said."""
    facts = json.loads(lidar_data("kitti/000008.json").read_text())
    calibration = Calibration(np.array(facts["camera_intrinsics"])[:3], np.array(facts["lidar_to_camera"]))
    path = lidar_data("kitti/000008.bin")
    expected = np.array([box["box"] for box in facts["boxes"]], np.float32)
    locations, dimensions, rotations = calibration.boxes_to_camera(expected)
    np.testing.assert_allclose(locations[0], [-2.70, 1.74, 3.68], atol=1e-3)
    np.testing.assert_allclose([*dimensions[0], rotations[0]], [1.60, 1.57, 3.23, -1.29], atol=1e-3)
    points = np.fromfile(path, "f4").reshape(-1, 4)
    counts = [np.count_nonzero(in_box(points[:, :3], box)) for box in expected]
    np.testing.assert_allclose(
        counts, [box["num_points"] for box in facts["boxes"]], rtol=0.1
    )  # the annotators' boxes stand upright in the camera's frame
    assert calibration.in_view(points[:, :3]).mean() > 0.99


@settings(max_examples=40, deadline=None)
@given(boxes_strategy, st.sampled_from(["camera", "lidar"]))
def test_kitti_boxes_come_back(boxes: np.ndarray, bottom: Any) -> None:
    calibration = Calibration(
        np.eye(3, 4), np.vstack([np.column_stack([np.linalg.qr(TILT)[0], [0.1, -0.2, -0.3]]), [0, 0, 0, 1]]), bottom=bottom
    )
    near(calibration.boxes_to_lidar(*calibration.boxes_to_camera(boxes)), boxes)


def test_kitti_label_files_come_back_to_the_letter(tmp_path: Path) -> None:
    calib = tmp_path / "calib.txt"
    calib.write_text(CALIB)
    calibration = read_calibration(calib)
    (tmp_path / "a.txt").write_text(KITTI_LABEL)
    labels = kitti.read_labels(tmp_path / "a.txt")
    boxes = kitti.boxes_of_labels(labels, calibration)
    labels.locations, labels.dimensions, labels.rotations = calibration.boxes_to_camera(boxes)
    kitti.write_labels(tmp_path / "b.txt", labels)
    written = [line.split() for line in (tmp_path / "b.txt").read_text().splitlines()][:2]
    assert written == [line.split() for line in KITTI_LABEL.splitlines()][:2]


def test_kitti_geometry(tmp_path: Path) -> None:
    """A car straight ahead, heading away: yaw 0, and its rectangle in the picture is around the projections of its corners."""
    calibration = Calibration.nominal()
    box = np.array([[10, 0, -0.5, 4, 2, 1.5, 0]], np.float32)
    locations, dimensions, rotations = calibration.boxes_to_camera(box)
    np.testing.assert_allclose(locations, [[0, 1.25, 10]], atol=1e-6)
    np.testing.assert_allclose(dimensions, [[1.5, 2, 4]])
    np.testing.assert_allclose(rotations, [-np.pi / 2])
    pixels, depth = calibration.project(box_corners(box[0]))
    assert depth.min() == pytest.approx(8)
    np.testing.assert_allclose(calibration.image_boxes(box), [[*pixels.min(0), *pixels.max(0)]])
    np.testing.assert_array_equal(calibration.image_boxes(box * [-1, 1, 1, 1, 1, 1, 1]), np.zeros((1, 4)))
    np.testing.assert_array_equal(calibration.in_view(np.array([[10, 0, 0], [-10, 0, 0], [10, 30, 0.0]])), [True, False, False])


def test_kitti_camera_view(tmp_path: Path) -> None:
    frame = read_detection(make_kitti(tmp_path, ("000001",))).frames[0]
    cloud = frame.read()
    cloud.points[:50, 0] *= -1
    seen_frame, seen = kitti.camera_view(frame, cloud)
    assert 0 < len(seen) <= 150
    assert (seen.points[:, 0] > 0).all()
    assert seen_frame.boxes is not None
    assert len(seen_frame.boxes) == len(seen_frame.labels or ()) == len(seen_frame.attributes["occluded"])


def test_difficulties() -> None:
    labels = kitti.KittiLabels(
        ["Car"] * 5, np.array([0, 0.2, 0.4, 0, 0.0]), np.array([0, 0, 0, 2, 0]), np.zeros(5),
        np.array([[0, 0, 1, h] for h in (41, 41, 41, 41, 24)], float), np.ones((5, 3)), np.zeros((5, 3)), np.zeros(5),
    )  # fmt: skip
    np.testing.assert_array_equal(labels.difficulties(), [0, 1, 2, 2, -1])


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    root = make_kitti(tmp_path, ("a", "b", "c", "d"))
    (root / "training" / "label_2" / "a.txt").write_text("Car 0 0\n")
    (root / "training" / "label_2" / "b.txt").write_text(KITTI_LABEL.replace("3.23", "-3.23"))
    (root / "training" / "calib" / "c.txt").write_text("P2: 1 2 3\n")
    with pytest.raises(InputError) as raised:
        read_detection(root)
    head, *lines = str(raised.value).splitlines()
    assert "3 problems" in head
    assert "label_2/a.txt: line 1 has 3 values; a KITTI label has 15" in lines[0]
    assert "label_2/b.txt: box 1 (Car) has the size -3.23 x 1.57 x 1.6" in lines[1]
    assert "calib/c.txt: calibration has no P2 with 12 numbers" in lines[2]


# --- Waymo ---


def make_waymo(root: Path) -> tuple[Path, np.ndarray]:
    """One frame whose only box is known in the lidar frame, as the converter writes it."""
    for folder in ("velodyne", "calib", "label_all"):
        (root / "training" / folder).mkdir(parents=True)
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(1, 50, (100, 3)), rng.uniform(0, 40, 100), rng.uniform(0, 1, 100), np.zeros(100)])
    points.astype("f4").tofile(root / "training" / "velodyne" / "0000001.bin")
    transform = np.column_stack([np.linalg.qr(TILT)[0], [0.1, -2, 1.5]])
    numbers = " ".join(f"{value:.12g}" for value in transform.reshape(-1))
    (root / "training" / "calib" / "0000001.txt").write_text(
        f"P0: 2000 0 960 0 0 2000 640 0 0 0 1 0\nR0_rect: 1 0 0 0 1 0 0 0 1\nTr_velo_to_cam_0: {numbers}\n"
    )
    box = np.array([20.0, -3, 0.8, 4.5, 2, 1.6, 0.3])
    location = transform[:, :3] @ (box[:3] - [0, 0, 0.8]) + transform[:, 3]
    x, y, z = location
    (root / "training" / "label_all" / "0000001.txt").write_text(
        f"Car 0 0 -10 0 0 0 0 1.6 2 4.5 {x:.9f} {y:.9f} {z:.9f} {-0.3 - np.pi / 2:.9f} 2 some-track\n"
    )
    return root, box


def test_waymo(tmp_path: Path) -> None:
    root, box = make_waymo(tmp_path)
    data = read_detection(root)
    frame = data.frames[0]
    assert (data.layout, frame.labels, frame.columns) == ("waymo", ["Car"], ("intensity", "elongation"))
    assert frame.boxes is not None
    near(frame.boxes, box[None])
    raw = np.fromfile(frame.path, "f4").reshape(-1, 6)
    np.testing.assert_array_equal(frame.read().array(["intensity", "elongation", "time"]), raw)
    squashed = read_waymo(root, tanh=TANH).frames[0].read()
    np.testing.assert_allclose(squashed.array(TANH)[:, 3:], np.tanh(raw[:, 3:5]), rtol=1e-6)
    np.testing.assert_array_equal(read_sweep(frame.path).columns["intensity"], raw[:, 3])


def test_waymo_labels_of_single_cameras(tmp_path: Path) -> None:
    root, box = make_waymo(tmp_path)
    text = (root / "training" / "label_all" / "0000001.txt").read_text()
    for camera in (0, 2):
        (root / "training" / f"label_{camera}").mkdir()
        (root / "training" / f"label_{camera}" / "0000001.txt").write_text(text)
    (root / "training" / "label_all").rename(root / "unused")
    frame = read_detection(root).frames[0]
    assert frame.boxes is not None
    near(frame.boxes, np.stack([box, box]))
    assert len(frame.attributes["image_box"]) == 2


# --- nuScenes ---


def turn(angle: float, axis: tuple[float, float, float] = (0, 0, 1)) -> list[float]:
    return [float(np.cos(angle / 2)), *(float(np.sin(angle / 2) * value) for value in axis)]


def make_nuscenes(root: Path) -> Path:
    """A scene of two key frames and a sweep between them; the car drives with 2 m/s along the global y."""
    tables: dict[str, list[dict[str, Any]]] = {
        "scene": [{"token": "s", "name": "scene-0061"}],
        "sample": [
            {"token": "k0", "scene_token": "s", "timestamp": 1_000_000, "next": "k1", "prev": ""},
            {"token": "k1", "scene_token": "s", "timestamp": 1_500_000, "next": "", "prev": "k0"},
        ],
        "sensor": [{"token": "lidar", "channel": "LIDAR_TOP"}, {"token": "cam", "channel": "CAM_FRONT"}],
        "calibrated_sensor": [
            {"token": "c", "sensor_token": "lidar", "translation": [0.9, 0, 1.8], "rotation": turn(-np.pi / 2)},
            {"token": "d", "sensor_token": "cam", "translation": [0, 0, 0], "rotation": turn(0)},
        ],
        "ego_pose": [{"token": f"e{i}", "translation": [100 + 5.0 * i, 200, 0], "rotation": turn(0.5)} for i in range(3)],
        "category": [{"token": "car", "name": "vehicle.car"}, {"token": "dog", "name": "animal"}],
        "instance": [{"token": "i", "category_token": "car"}, {"token": "j", "category_token": "dog"}],
        "sample_data": [],
        "sample_annotation": [],
    }  # fmt: skip
    for i, (sample, key, time) in enumerate((("k0", True, 1_000_000), ("k1", False, 1_400_000), ("k1", True, 1_500_000))):
        filename = f"samples/LIDAR_TOP/{i}.pcd.bin"
        write_cloud(root / filename, sweep(seed=i))
        tables["sample_data"].append(
            {"token": f"d{i}", "sample_token": sample, "is_key_frame": key, "timestamp": time, "filename": filename,
             "ego_pose_token": f"e{i}", "calibrated_sensor_token": "c", "prev": f"d{i - 1}" if i else ""}
        )  # fmt: skip
    tables["sample_data"].append(tables["sample_data"][0] | {"token": "cam0", "calibrated_sensor_token": "d", "filename": "none.jpg"})
    for i, sample in enumerate(("k0", "k1")):
        neighbours = {"prev": "a0" if i else "", "next": "" if i else "a1"}
        box = {"translation": [110, 205 + i, 1], "size": [2, 4.5, 1.6], "rotation": turn(np.pi / 2), "num_lidar_pts": 30 + i}
        tables["sample_annotation"].append({"token": f"a{i}", "sample_token": sample, "instance_token": "i", **neighbours, **box})
        tables["sample_annotation"].append({"token": f"b{i}", "sample_token": sample, "instance_token": "j", "prev": "", "next": "", **box})
    for name, records in tables.items():
        path = root / "v1.0-mini" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(records))
    return root


def test_nuscenes(tmp_path: Path) -> None:
    data = read_detection(make_nuscenes(tmp_path))
    assert (data.layout, data.class_names, [frame.name for frame in data.frames]) == ("nuscenes", ["car"], ["k0", "k1"])
    frame = data.frames[0]
    assert frame.boxes is not None
    assert frame.to_global is not None
    assert frame.labels == ["car"]
    # by hand: into the vehicle, then into the sensor, which looks along its own y
    in_ego = rotate(-0.5) @ np.array([10.0, 5, 1])
    in_sensor = rotate(np.pi / 2) @ (in_ego - [0.9, 0, 1.8])
    np.testing.assert_allclose(frame.boxes[0, :6], [*in_sensor, 4.5, 2, 1.6], rtol=1e-5)
    assert frame.boxes[0, 6] == pytest.approx(np.pi / 2 - 0.5 + np.pi / 2, abs=1e-5)
    np.testing.assert_allclose(frame.boxes[0, 7:], (rotate(np.pi / 2 - 0.5) @ [0, 2, 0])[:2], atol=1e-5)
    assert frame.attributes["num_points"].tolist() == [30]
    assert len(read_nuscenes(tmp_path, "train")) == len(read_nuscenes(tmp_path, "mini_train")) == 2
    with pytest.raises(InputError, match="no samples of the split 'val'"):
        read_nuscenes(tmp_path, "val")


def rotate(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])


def test_nuscenes_sweeps(tmp_path: Path) -> None:
    """The same global point, seen from two places, falls onto itself."""
    frames = read_nuscenes(make_nuscenes(tmp_path), sweeps=3).frames
    assert [len(frame.sweeps) for frame in frames] == [0, 2]
    first = frames[1].sweeps[0]
    assert first.age == pytest.approx(0.1)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotate(0.5), [105, 200, 0]
    mount = np.eye(4)
    mount[:3, :3], mount[:3, 3] = rotate(-np.pi / 2), [0.9, 0, 1.8]
    point = np.array([[3.0, 4, 0.5]])
    assert frames[1].to_global is not None
    np.testing.assert_allclose(move(move(point, first.transform), frames[1].to_global), move(point, pose @ mount), atol=1e-9)
    cloud = frames[1].read()
    assert len(cloud) == 600
    np.testing.assert_allclose(np.unique(cloud.columns["time"]), [0, 0.1, 0.5], atol=1e-6)
    np.testing.assert_array_equal(frames[0].read().columns["time"], 0)


@pytest.mark.parametrize(("columns", "counts"), [(["intensity"], [200, 200]), (["intensity", "time"], [200, 600])])
def test_a_model_that_reads_the_time_is_judged_on_several_sweeps(
    tmp_path: Path, monkeypatch, columns: list[str], counts: list[int]
) -> None:
    from vsuite.pointcloud import evaluation
    from vsuite.pointcloud.boxes import Detections
    from vsuite.pointcloud.inference import ModelNote

    seen: list[PointCloud] = []

    class Finding:
        note = ModelNote(task="detect", classes=["car"], columns=columns)

        def detect(self, cloud: PointCloud, **_: Any) -> Detections:
            seen.append(cloud)
            return Detections(torch.zeros(0, 7), torch.zeros(0), torch.zeros(0, dtype=torch.int64))

    monkeypatch.setattr(evaluation, "Predictor", lambda *_, **__: Finding())
    assert evaluation.judge_model(None, make_nuscenes(tmp_path)).frames == 2
    assert [len(cloud) for cloud in seen] == counts
    assert all(("time" in cloud.columns) == ("time" in columns) for cloud in seen)


@pytest.mark.parametrize(("columns", "counts"), [(["intensity"], [200, 200]), (["intensity", "time"], [200, 600])])
def test_a_model_that_reads_the_time_is_trained_on_several_sweeps(tmp_path: Path, columns: list[str], counts: list[int]) -> None:
    from vsuite.pointcloud.training import make_task, resolve_settings

    recipe = {
        "name": "tiny",
        "task": "detect",
        "model": "centerpoint_nuscenes",
        "training": {"steps": 1, "batch_size": 1},
        "sweeps": {"classes": ["car"], "columns": columns},
    }
    (tmp_path / "tiny.yaml").write_text(json.dumps(recipe))
    task: Any = make_task(resolve_settings(data=make_nuscenes(tmp_path), recipe=tmp_path / "tiny.yaml"))[0]
    assert sorted(len(frame.read()) for frame in [*task.training, *task.validation]) == counts


def test_nuscenes_tables_that_are_missing(tmp_path: Path) -> None:
    make_nuscenes(tmp_path)
    (tmp_path / "v1.0-mini" / "ego_pose.json").unlink()
    (tmp_path / "v1.0-mini" / "sensor.json").write_text("[{")
    with pytest.raises(InputError, match=r"2 problems:\n.*sensor.json: not a readable table.*\n.*ego_pose.json: no such file"):
        read_nuscenes(tmp_path)


@settings(max_examples=20, deadline=None)
@given(hnp.arrays(np.float64, 4, elements=st.floats(0.1, 1)))
def test_quaternions(quaternion: np.ndarray) -> None:
    from scipy.spatial.transform import Rotation

    np.testing.assert_allclose(quaternion_matrix(quaternion), Rotation.from_quat(quaternion[[1, 2, 3, 0]]).as_matrix(), atol=1e-12)


# --- the package's own layout ---


@settings(max_examples=15, deadline=None)
@given(boxes_strategy)
def test_own_layout_comes_back(tmp_path_factory: pytest.TempPathFactory, boxes: np.ndarray) -> None:
    root = tmp_path_factory.mktemp("own")
    labels = ["Car", "Pedestrian", "Van"] * 2
    write_frame(root, "0", sweep(), boxes, labels[: len(boxes)])
    frame = read_detection(root).frames[0]
    assert frame.boxes is not None
    near(frame.boxes, boxes, 0)
    assert frame.labels == labels[: len(boxes)]
    np.testing.assert_array_equal(frame.read().array(frame.columns), sweep().array(["intensity"]))


def test_own_layout(tmp_path: Path) -> None:
    boxes = np.array([[10, 0, 0, 4, 2, 1.5, 4.0]], np.float32)
    write_frame(tmp_path, "a", sweep(), boxes, ["Car"], suffix=".ply")
    write_frame(tmp_path, "b", sweep(), boxes[:0], [], suffix=".pcd")
    write_split(tmp_path, "val", ["b"])
    (tmp_path / "dataset.json").write_text('{"classes": ["Pedestrian", "Car"], "columns": []}')
    data = read_detection(tmp_path)
    assert (data.class_names, [len(frame.labels or ()) for frame in data.frames]) == (["Pedestrian", "Car"], [1, 0])
    assert data.frames[0].boxes is not None
    assert data.frames[0].boxes[0, 6] == pytest.approx(4.0 - 2 * np.pi, abs=1e-6)
    assert [frame.name for frame in read_detection(tmp_path, "val").frames] == ["b"]
    with pytest.raises(InputError, match=r"train.txt: no such file, so there is no split 'train'; there is val"):
        read_detection(tmp_path, "train")


def test_own_layout_problems(tmp_path: Path) -> None:
    boxes = np.array([[10, 0, 0, 4, 2, 1.5, 0]], np.float32)
    for name in "abc":
        write_frame(tmp_path, name, sweep(), boxes, ["Car"])
    (tmp_path / "labels" / "a.txt").write_text("1 2 3 4 5 6 7\n")
    (tmp_path / "labels" / "b.txt").write_text("1 2 3 4 -5 6 7 Car\n")
    (tmp_path / "labels" / "c.txt").unlink()
    (tmp_path / "labels" / "z.txt").write_text("")
    with pytest.raises(InputError) as raised:
        read_detection(tmp_path)
    message = str(raised.value)
    assert "4 problems" in message
    for part in (
        "z.txt: labels of no frame",
        "a.txt: line 1 has 7 values",
        "b.txt: box 1 (Car) has the size 4 x -5 x 6",
        "c.txt: labels cannot be read",
    ):
        assert part in message


def test_labels_of_another_frame(tmp_path: Path) -> None:
    cloud = sweep(2000)
    here = np.array([[*cloud.points[i], 3, 2, 2, 0] for i in (0, 1)], np.float32)
    write_frame(tmp_path, "a", cloud, here, ["Car", "Car"])
    check_dataset(read_detection(tmp_path))
    write_frame(tmp_path, "a", cloud, here + np.array([0, 25, 0, 0, 0, 0, 0], np.float32), ["Car", "Car"])
    frame = read_detection(tmp_path).frames[0]
    with pytest.raises(InputError, match=r"a.bin: none of the 2 boxes within 50 m holds a point of it; the labels are of another frame"):
        check_labels_fit(frame, frame.read())


def test_unknown_layouts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a known detection data set"):
        read_detection(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        read_detection(tmp_path / "none")


# --- results ---


def predictions(boxes: np.ndarray) -> dict[str, Boxes]:
    names = [("Car", "Pedestrian")[i % 2] for i in range(len(boxes))]
    return {
        "a": Boxes(boxes, names, np.linspace(1, 0.25, len(boxes), dtype=np.float32)),
        "b": Boxes(boxes[:0], [], np.zeros(0, np.float32)),
    }


@settings(max_examples=15, deadline=None)
@given(boxes_strategy)
def test_json_comes_back_exactly(tmp_path_factory: pytest.TempPathFactory, boxes: np.ndarray) -> None:
    path = tmp_path_factory.mktemp("json") / "boxes.json"
    boxes_io.write_json(path, predictions(boxes))
    back = boxes_io.read_json(path)
    np.testing.assert_array_equal(back["a"].boxes, boxes)
    np.testing.assert_array_equal(back["a"].scores, predictions(boxes)["a"].scores)
    assert back["a"].names == predictions(boxes)["a"].names
    assert len(back["b"]) == 0


@settings(max_examples=15, deadline=None)
@given(boxes_strategy)
def test_kitti_results_come_back(tmp_path_factory: pytest.TempPathFactory, boxes: np.ndarray) -> None:
    folder = tmp_path_factory.mktemp("kitti")
    boxes_io.write_kitti(folder, predictions(boxes))
    back = boxes_io.read_kitti(folder)
    near(back["a"].boxes, boxes, 2e-4)
    np.testing.assert_allclose(back["a"].scores, predictions(boxes)["a"].scores, atol=1e-4)
    assert back["a"].names == predictions(boxes)["a"].names
    assert len(back["b"]) == 0


@settings(max_examples=15, deadline=None)
@given(boxes_strategy, st.floats(-3, 3))
def test_nuscenes_results_come_back(tmp_path_factory: pytest.TempPathFactory, boxes: np.ndarray, angle: float) -> None:
    path = tmp_path_factory.mktemp("nuscenes") / "results.json"
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = rotate(angle), [600, 1600, 2]
    moving = np.column_stack([boxes, np.linspace(-3, 3, len(boxes)), np.full(len(boxes), 0.5)]).astype(np.float32)
    boxes_io.write_nuscenes(path, predictions(moving), {"a": pose})
    back = boxes_io.read_nuscenes(path, {"a": pose})
    near(back["a"].boxes, moving, 1e-4)
    content = json.loads(path.read_text())
    assert content["meta"]["use_lidar"] is True
    assert content["results"]["a"][0]["size"] == pytest.approx(moving[0, [4, 3, 5]].tolist())


def test_nuscenes_results_have_its_names(tmp_path: Path) -> None:
    """Its tools refuse other names, and missing attributes."""
    names = ["Car", "Pedestrian", "Cyclist", "traffic_cone", "Tram"]
    boxes = np.tile(np.array([1, 2, 0, 4, 2, 1.5, 0], np.float32), (5, 1))
    boxes_io.write_nuscenes(tmp_path / "results.json", {"a": Boxes(boxes, names, np.linspace(1, 0.5, 5, dtype=np.float32))})
    written = [
        (record["detection_name"], record["attribute_name"])
        for record in json.loads((tmp_path / "results.json").read_text())["results"]["a"]
    ]
    assert written == [
        ("car", "vehicle.parked"),
        ("pedestrian", "pedestrian.standing"),
        ("bicycle", "cycle.without_rider"),
        ("traffic_cone", ""),
        ("Tram", ""),
    ]


def test_boxes_given_with_sweeps_are_read() -> None:
    boxes = boxes_io.read_json(lidar_data("kitti/000008.json"))["000008"]
    assert boxes.names == ["Car"] * 6
    np.testing.assert_allclose(boxes.boxes[0], [3.9619, 2.7083, -0.9452, 3.23, 1.57, 1.6, -0.2808], rtol=1e-6)


def test_damaged_results(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"boxes": [{"label": "Car", "box": [1, 2, 3, 4, -5, 6, 0]}]}')
    with pytest.raises(InputError, match=r"a.json: frame a: box 1 \(Car\) has the size 4 x -5 x 6"):
        boxes_io.read_json(path)
    path.write_text('{"boxes": [{"label": "Car", "box": [1, 2, 3]}]}')
    with pytest.raises(InputError, match="boxes have 7 values"):
        boxes_io.read_json(path)
    path.write_text('{"other": 1}')
    with pytest.raises(InputError, match="not a file of boxes"):
        boxes_io.read_json(path)
    path.write_text('{"results": {"a": [{"size": [1, 2]}]}}')
    with pytest.raises(InputError, match="sample a: damaged results"):
        boxes_io.read_nuscenes(path)
