"""What users give that is not as it should be: missing files, the sensor's own vehicle, millimetres, points without a place."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from vsuite.core import InputError
from vsuite.core.cli.app import run
from vsuite.pointcloud.boxes import Detections
from vsuite.pointcloud.cli import app
from vsuite.pointcloud.data.boxes_io import read_json
from vsuite.pointcloud.data.clouds import PointCloud, read_cloud, without_close, write_cloud
from vsuite.pointcloud.data.frames import Frame, Sweep
from vsuite.pointcloud.inference import Predictor

DATA = Path(os.environ.get("VSUITE_DATA", Path(__file__).parents[4] / "shared" / "data")) / "lidar"


def vsuite(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        run(app, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


@pytest.fixture
def good(tmp_path: Path) -> Path:
    points = np.random.default_rng(0).uniform((-20, -20, -1.8), (20, 20, -1.6), (2000, 3)).astype(np.float32)
    write_cloud(tmp_path / "good.ply", PointCloud(points))
    return tmp_path / "good.ply"


@pytest.mark.parametrize("task", ["detect", "classify"])
def test_predict_goes_on_after_a_missing_file(capsys, task: str, good: Path, tmp_path: Path) -> None:
    missing, out = tmp_path / "missing.bin", tmp_path / "found"
    code, said, err = vsuite(capsys, "predict", missing, good, "--task", task, "--out", out, "--device", "cpu", "--no-pictures")
    assert code == 2
    assert "1 predicted" in said
    assert err.splitlines()[-1] == f"error: 1 of 2 files failed; first: {missing}: no such file or folder, and no file matches it"
    written = {"detect": "boxes.json", "classify": "classes.csv"}[task]
    assert "good" in (out / written).read_text()
    code, said, err = vsuite(capsys, "predict", missing, "--task", task, "--out", tmp_path / "other", "--device", "cpu")
    assert (code, said) == (2, "")
    assert err == f"error: {missing}: no such file or folder, and no file matches it\n"
    assert not (tmp_path / "other").exists()


def test_inspect_goes_on_after_missing_files(capsys, good: Path, tmp_path: Path) -> None:
    code, out, err = vsuite(capsys, "inspect", tmp_path / "a.bin", tmp_path / "*.pcd", good)
    assert code == 2
    assert "2,000" in out
    assert f"not used: {tmp_path / '*.pcd'}: no such file" in err
    assert f"error: 2 of 3 files cannot be read; first: {tmp_path / 'a.bin'}: no such file" in err


def test_view_shows_what_can_be_read(capsys, good: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.ply").write_bytes(b"ply\nformat ascii 1.0\n")
    page = tmp_path / "page.html"
    code, _, err = vsuite(capsys, "view", tmp_path / "none.bin", tmp_path / "bad.ply", good, "--save", page)
    assert code == 2
    assert err.count("not shown: ") == 2
    assert f"2 of 3 files cannot be read; first: {tmp_path / 'none.bin'}: no such file" in err
    text = page.read_text()
    assert '"name":"good"' in text
    assert '"name":"bad"' not in text
    code, _, err = vsuite(capsys, "view", tmp_path / "bad.ply", good, "--save", tmp_path / "picture.png")
    assert code == 2
    assert "1 of 2 files cannot be read" in err
    assert (tmp_path / "picture.png").is_file()
    code, _, err = vsuite(capsys, "view", tmp_path / "bad.ply", "--save", tmp_path / "other.html")
    assert code == 2
    assert len(err.splitlines()) == 1
    assert "damaged PLY header" in err
    assert not (tmp_path / "other.html").exists()


def test_the_page_ends_in_html(capsys, good: Path, tmp_path: Path) -> None:
    code, _, err = vsuite(capsys, "predict", good, "--out", tmp_path / "found", "--page", tmp_path / "page.txt", "--device", "cpu")
    assert code == 2
    assert err == f"error: {tmp_path / 'page.txt'}: its name must end in .html or .htm\n"
    assert not (tmp_path / "found").exists()  # before anything is computed


AROUND = np.array([[0.5, -0.9, -1], [0.999, 0, 0], [1.0, 0.2, -1], [0.3, -1.2, 0], [8, 0.1, -1.7]], np.float32)


def test_points_on_the_own_vehicle_go(tmp_path: Path) -> None:
    """As nuScenes' devkit: those nearer in x and in y; by default in its files alone."""
    intensity = np.arange(5, dtype=np.float32)
    write_cloud(tmp_path / "top.pcd.bin", PointCloud(AROUND, {"intensity": intensity, "ring": intensity}))
    write_cloud(tmp_path / "kitti.bin", PointCloud(AROUND, {"intensity": intensity}))
    sweep, kitti = read_cloud(tmp_path / "top.pcd.bin"), read_cloud(tmp_path / "kitti.bin")
    kept = without_close(sweep)
    assert kept.columns["intensity"].tolist() == [2, 3, 4]
    assert np.array_equal(kept.points, AROUND[2:])
    assert without_close(kitti) is kitti
    assert without_close(sweep, 0) is sweep
    assert without_close(kitti, 1.25).columns["intensity"].tolist() == [4]
    with pytest.raises(InputError, match=r"kitti\.bin: all of its points are nearer than 9 m to the sensor"):
        without_close(kitti, 9)
    with pytest.raises(InputError, match="0 or more"):
        without_close(kitti, -1)
    predictor, seen = Predictor(device="cpu"), []

    def predict(points: list, score_threshold: float) -> list[Detections]:
        seen.append(len(points[0]))
        return [Detections(points[0][:0, :1].expand(0, 7), points[0][:0, 0], points[0][:0, 0].long())]

    predictor.model.predict = predict
    for cloud, options in ((sweep, {}), (kitti, {}), (kitti, {"remove_close": 1.0}), (tmp_path / "top.pcd.bin", {"remove_close": 0.0})):
        predictor.detect(cloud, **options)  # type: ignore[arg-type]
    assert seen == [3, 5, 3, 5]


def test_points_on_the_own_vehicle_go_from_each_sweep_of_a_frame(tmp_path: Path) -> None:
    """An earlier sweep's are left out where it was taken, and not where it has been moved to."""
    for name in ("now", "before"):
        write_cloud(tmp_path / f"{name}.pcd.bin", PointCloud(AROUND))
    moved = np.eye(4)
    moved[0, 3] = -8
    earlier = (Sweep(tmp_path / "before.pcd.bin", moved, 0.5),)
    frame = Frame("a", tmp_path / "now.pcd.bin", columns=("intensity", "time"), layout="nuscenes", sweeps=earlier, remove_close=1.0)
    cloud = frame.read()
    np.testing.assert_allclose(cloud.points, np.concatenate([AROUND[2:], AROUND[2:] - np.array([8, 0, 0], np.float32)]), atol=1e-6)
    assert cloud.columns["time"].tolist() == [0, 0, 0, 0.5, 0.5, 0.5]


def test_no_car_is_found_on_the_own_vehicle(capsys, tmp_path: Path) -> None:
    if not (DATA / "nuscenes").is_dir():
        pytest.skip(f"{DATA}: no real sweep here")
    nearest, counts = [], []
    for options in ([], ["--remove-close", "0"]):
        arguments = ["predict", DATA / "nuscenes" / "lidar_top_0.pcd.bin", "--turn", "-90", "--out", tmp_path / "found", "--no-pictures"]
        assert vsuite(capsys, *arguments, "--device", "cpu", "--overwrite", *options)[0] == 0
        boxes = read_json(tmp_path / "found" / "boxes.json")["lidar_top_0"].boxes
        nearest.append(float(np.linalg.norm(boxes[:, :2], axis=1).min()))
        counts.append(len(boxes))
    assert nearest[0] > 5
    assert nearest[1] < 1
    assert counts[0] == counts[1] - 1


def test_millimetres_and_points_without_a_place(capsys, good: Path, tmp_path: Path) -> None:
    points = read_cloud(good).points
    broken = points.copy()
    broken[:7, 1] = np.nan
    write_cloud(tmp_path / "mm.ply", PointCloud(points * 1000))
    write_cloud(tmp_path / "nan.ply", PointCloud(broken))
    both = [tmp_path / "mm.ply", tmp_path / "nan.ply"]
    out = ["--out", tmp_path / "found", "--device", "cpu", "--no-pictures"]
    code, _, err = vsuite(capsys, "predict", *both, *out)
    assert code == 2
    assert "if these are millimetres, --scale 0.001 makes them metres" in err
    assert "7 of 2000 points have NaN or infinite coordinates; --drop-invalid leaves them out" in err
    assert vsuite(capsys, "predict", both[0], *out, "--scale", "0.001")[0] == 0
    assert vsuite(capsys, "predict", both[1], *out, "--drop-invalid", "--overwrite")[0] == 0
    code, said, _ = vsuite(capsys, "inspect", both[0], "--scale", "0.001")
    assert code == 0
    assert "probably metres" in said
    assert "probably millimetres" in vsuite(capsys, "inspect", both[0])[1]
    assert "2,000, 7 with NaN" in vsuite(capsys, "inspect", both[1])[1]
    assert "points:   1,993\n" in vsuite(capsys, "inspect", both[1], "--drop-invalid")[1]
    assert vsuite(capsys, "view", both[1], "--save", tmp_path / "a.png")[0] == 2
    assert vsuite(capsys, "view", both[1], "--save", tmp_path / "a.png", "--drop-invalid", "--scale", "2")[0] == 0
    for scale in ("0", "-1", "nan"):
        code, _, err = vsuite(capsys, "inspect", good, "--scale", scale)
        assert code == 2
        assert "is a positive number, such as 0.001 for millimetres" in err
