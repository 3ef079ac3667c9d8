"""The verbs of `vsuite-pointcloud` as a user meets them, with tiny models on simulated data."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from vsuite.core import InputError
from vsuite.core.cli.app import run
from vsuite.core.weights import read_metadata
from vsuite.pointcloud.boxes import Detections
from vsuite.pointcloud.cli import app
from vsuite.pointcloud.data.boxes_io import read_json
from vsuite.pointcloud.data.clouds import PointCloud, read_cloud, write_cloud
from vsuite.pointcloud.data.detection import read_detection
from vsuite.pointcloud.inference import NOTE, ModelNote, Predictor, load_model, unit_sphere

TINY_DETECTOR = {
    "name": "tiny",
    "task": "detect",
    "model": "flatformer",
    "options": {
        "voxel_size": [1.0, 1.0, 6.0],
        "point_cloud_range": [-24.0, -24.0, -3.0, 24.0, 24.0, 3.0],
        "vfe_channels": [8],
        "embed_dim": 16,
        "num_heads": 2,
        "num_blocks": 1,
        "window": [5, 5],
        "group_size": 20,
        "backbone_channels": [8, 8],
        "layer_nums": [1, 1],
        "neck_channels": [8, 8],
        "share_channels": 8,
    },
    "training": {"steps": 3, "batch_size": 2, "validate_every": 3, "log_every": 1, "best_metric": "map", "best_mode": "max"},
    "sweeps": {"merge": {"Van": "Car"}, "columns": ["intensity"], "column_scales": {"intensity": 255.0}, "paste": {"Car": 2}},
    "validation": {"pictures": 1},
}
TINY_CLASSIFIER = {
    "name": "tiny_shapes",
    "task": "classify",
    "model": "pointnet2",
    "training": {"steps": 2, "batch_size": 4, "validate_every": 2, "log_every": 1, "best_metric": "oa", "best_mode": "max"},
    "shapes": {"points": 64},
    "validation": {"pictures": 4},
}


def vsuite(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        run(app, [str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return int(left.value.code or 0), captured.out, captured.err


def write_recipe(folder: Path, recipe: dict) -> Path:
    path = folder / f"{recipe['name']}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vsuite.pointcloud.simulate.frames import write_frames

    return write_frames(tmp_path_factory.mktemp("data") / "streets", 4, seed=3, profile="vlp16", split=0.25, progress=False)


@pytest.fixture(scope="module")
def detector(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps on the streets."""
    from vsuite.pointcloud.training import resolve_settings, train

    folder = tmp_path_factory.mktemp("runs")
    settings = resolve_settings(data=streets, recipe=write_recipe(folder, TINY_DETECTOR))
    train(settings, folder / "run", device="cpu", say=lambda _: None)
    return folder / "run"


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vsuite.pointcloud.simulate.solids import write_solid_dataset

    return write_solid_dataset(tmp_path_factory.mktemp("data") / "shapes", 48, points=128, split=1 / 3)


@pytest.fixture(scope="module")
def classifier(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vsuite.pointcloud.training import resolve_settings, train

    folder = tmp_path_factory.mktemp("runs")
    settings = resolve_settings(data=shapes, recipe=write_recipe(folder, TINY_CLASSIFIER))
    train(settings, folder / "run", device="cpu", say=lambda _: None)
    return folder / "run"


def test_a_run_leaves_what_prediction_needs(detector: Path, classifier: Path) -> None:
    for run_folder, picture in ((detector, "*.png"), (classifier, "shapes.png")):
        assert (run_folder / "report.html").is_file()
        assert list((run_folder / "pictures").rglob(picture))
    note = read_metadata(detector / "checkpoints" / "best.safetensors")[NOTE]
    assert note["classes"] == ["Car", "Pedestrian", "Cyclist"]
    assert note["columns"] == ["intensity"]
    assert len(read_metadata(classifier / "checkpoints" / "best.safetensors")[NOTE]["classes"]) == 16


def test_detect_writes_boxes_pictures_and_a_page(capsys, detector: Path, streets: Path, tmp_path: Path) -> None:
    arguments = ["predict", streets / "points", "--weights", detector, "--out", tmp_path / "found", "--threshold", "0.0"]
    code, out, err = vsuite(capsys, *arguments, "--format", "json,kitti,nuscenes", "--page", tmp_path / "page.html", "--device", "cpu")
    assert code == 0, err
    assert "4 predicted" in out
    frames = read_json(tmp_path / "found" / "boxes.json")
    assert sorted(frames) == [f"{i:06d}" for i in range(4)]
    assert all((np.diff(boxes.scores) <= 0).all() for boxes in frames.values())
    for name in ("000000.png", "kitti/000003.txt", "nuscenes.json"):
        assert (tmp_path / "found" / name).is_file()
    assert "000002" in (tmp_path / "page.html").read_text()
    code, _, err = vsuite(capsys, *arguments)
    assert code == 2
    assert "exists; --overwrite replaces it" in err


def test_a_bad_sweep_does_not_stop_the_others(capsys, detector: Path, streets: Path, tmp_path: Path) -> None:
    good = read_cloud(streets / "points" / "000000.bin", layout="kitti")
    write_cloud(tmp_path / "good.ply", good)
    (tmp_path / "short.bin").write_bytes(b"\0" * 30)
    write_cloud(tmp_path / "plain.ply", PointCloud(good.points))
    code, out, err = vsuite(capsys, "predict", tmp_path, "--weights", detector, "--out", tmp_path / "found", "--device", "cpu")
    assert code == 2
    assert "1 predicted" in out
    assert "short.bin" in out + err
    assert "lacks the column 'intensity'" in out + err
    assert list(read_json(tmp_path / "found" / "boxes.json")) == ["good"]


def test_evaluate_agrees_for_a_model_and_its_predictions(capsys, detector: Path, streets: Path, tmp_path: Path) -> None:
    names = (streets / "ImageSets" / "val.txt").read_text().split()
    files = [streets / "points" / f"{name}.bin" for name in names]
    known = ["--classes", "Car,Pedestrian,Cyclist"]
    assert vsuite(capsys, "predict", *files, "--weights", detector, "--out", tmp_path / "found", "--threshold", "0.05")[0] == 0
    boxes = tmp_path / "found" / "boxes.json"
    assert vsuite(capsys, "evaluate", "--data", streets, boxes, "--out", tmp_path / "a", *known)[0] == 0
    code, out, _ = vsuite(capsys, "evaluate", "--data", streets, "--weights", detector, "--out", tmp_path / "b", "--device", "cpu")
    assert code == 0
    assert "Hungarian" in out
    first, second = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in "ab")
    assert first["waymo"] == second["waymo"]


def test_a_damaged_frame_is_named_and_the_others_are_judged(capsys, detector: Path, streets: Path, tmp_path: Path) -> None:
    from vsuite.pointcloud.data.boxes_io import Boxes, write_json

    shutil.copytree(streets, tmp_path / "streets")
    first, *others = (streets / "ImageSets" / "train.txt").read_text().split()
    (tmp_path / "streets" / "points" / f"{first}.bin").write_bytes(b"123")
    command = ["evaluate", "--data", tmp_path / "streets", "--split", "train", "--weights", detector, "--out", tmp_path / "out"]
    code, out, err = vsuite(capsys, *command)
    assert code == 2
    assert f"1 of {len(others) + 1} frames cannot be used and do not count" in err
    assert f"points/{first}.bin" in err
    assert "Hungarian" in out
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert found["count"] == len(others)
    assert len(found["not_used"]) == 1
    boxes, truth = tmp_path / "boxes.json", read_detection(streets).frames
    write_json(boxes, {f.name: Boxes(f.boxes, f.labels, np.ones(len(f.labels), np.float32)) for f in truth})
    code, _, err = vsuite(capsys, *command[:5], boxes, "--out", tmp_path / "out")
    assert code == 2
    assert f"1 of {len(others) + 1} frames cannot be used and do not count" in err
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["count"] == len(others)
    for name in others:
        (tmp_path / "streets" / "points" / f"{name}.bin").write_bytes(b"123")
    code, out, err = vsuite(capsys, *command)
    assert code == 2
    assert f"none of {len(others) + 1} frames can be used" in err


def test_truth_as_prediction_is_perfect(streets: Path, tmp_path: Path) -> None:
    from vsuite.pointcloud.data.boxes_io import Boxes, write_json
    from vsuite.pointcloud.evaluation import judge_predictions

    frames = read_detection(streets).frames
    write_json(tmp_path / "boxes.json", {f.name: Boxes(f.boxes, f.labels, np.ones(len(f.labels), np.float32)) for f in frames})
    found = judge_predictions(tmp_path / "boxes.json", streets, metrics=("waymo",))
    rows = [row for row in found.tables["waymo"][1] if row["num_truths"] and row["name"] != "mean"]
    assert rows
    assert all(row["ap"] == pytest.approx(100) and row["aph"] == pytest.approx(100) for row in rows if row["band"] == "all")


def test_classify_and_evaluate_shapes(capsys, classifier: Path, shapes: Path, tmp_path: Path) -> None:
    from vsuite.pointcloud.simulate.solids import make_solids

    for index, cloud in enumerate(make_solids(3, 100, seed=9)[0]):
        write_cloud(tmp_path / "clouds" / f"{index}.ply", PointCloud(cloud))
    write_cloud(tmp_path / "clouds" / "one_place.ply", PointCloud(np.ones((50, 3), np.float32)))
    code, out, err = vsuite(capsys, "predict", tmp_path / "clouds", "--weights", classifier, "--out", tmp_path / "named", "--device", "cpu")
    assert code == 2
    assert "one_place.ply: all 64 points lie in one place" in err
    lines = (tmp_path / "named" / "classes.csv").read_text().splitlines()
    assert len(lines) == 4
    assert all(sum(map(float, line.split(",")[3:])) == pytest.approx(1, abs=1e-4) for line in lines[1:])
    code, out, err = vsuite(capsys, "evaluate", "--data", shapes, "--weights", classifier, "--out", tmp_path / "judged", "--device", "cpu")
    assert code == 0, err
    assert "overall accuracy" in out
    metrics = json.loads((tmp_path / "judged" / "metrics.json").read_text())
    assert metrics["count"] == 16
    assert 0 <= metrics["accuracy"]["rows"][0]["percent"] <= 100


def test_inspect_and_view(capsys, detector: Path, streets: Path, tmp_path: Path) -> None:
    sweep = streets / "points" / "000001.bin"
    code, out, _ = vsuite(capsys, "inspect", sweep)
    assert code == 0
    assert "probably metres" in out
    assert vsuite(capsys, "view", sweep, "--labels", streets / "labels", "--save", tmp_path / "page.html")[0] == 0
    assert (
        vsuite(capsys, "view", sweep, "--labels", streets / "labels", "--save", tmp_path / "picture.png", "--colour", "intensity")[0] == 0
    )
    assert (tmp_path / "picture.png").stat().st_size > 5000
    for arguments, message in (
        (["--save", tmp_path / "page.pdf"], "must end in .html or .htm or .png"),
        (["--labels", streets / "labels" / "000002.txt", "--save", tmp_path / "x.html"], "and none of 000001"),
        (["--colour", "intensty", "--save", tmp_path / "x.html"], "intensity"),
    ):
        code, _, err = vsuite(capsys, "view", sweep, *arguments)
        assert code == 2
        assert message in err


def test_inspect_goes_on_after_a_bad_file(capsys, streets: Path, tmp_path: Path) -> None:
    (tmp_path / "a.ply").write_bytes(b"ply\nformat ascii 1.0\n")
    (tmp_path / "b.bin").write_bytes((streets / "points" / "000000.bin").read_bytes())
    code, out, err = vsuite(capsys, "inspect", tmp_path)
    assert code == 2
    assert "b.bin" in out
    assert "1 of 2 files cannot be read; first: " in err
    assert "a.ply: damaged PLY header" in err


def test_wrong_weights_and_tasks(capsys, detector: Path, classifier: Path, streets: Path, shapes: Path, tmp_path: Path) -> None:
    sweep = streets / "points" / "000000.bin"
    for arguments, message in (
        (["predict", sweep, "--weights", classifier, "--task", "detect"], "is for the task 'classify', not 'detect'"),
        (["predict", tmp_path / "none.bin", "--weights", detector], "no such file or folder"),
        (["predict", sweep, "--weights", detector, "--format", "coco"], "unknown --format 'coco'"),
        (["evaluate", "--data", streets, "--weights", classifier], "are not the model's, ellipsoid"),
        (["evaluate", "--data", shapes, "--weights", detector], "not a known detection data set"),
        (["evaluate", "--data", streets, "--weights", detector, "--metrics", "coco"], "unknown metric 'coco'"),
        (["evaluate", "--data", streets, "boxes.json", "--remove-close", "1"], "--remove-close is for what a model is given"),
        (["evaluate", "--data", streets, "--weights", detector, "--remove-close", "900"], "all of its points are nearer than 900 m"),
        (["train", "--data", streets, "--recipe", "flatformer_street"], "flatformer_streets"),
        (["train", "--data", streets, "--model", "pointnet2"], "is a model for shape classification"),
        (["train", "--data", tmp_path / "none"], "no such folder"),
    ):
        code, _, err = vsuite(capsys, *arguments)
        assert code == 2, arguments
        assert message in err, err


def test_training_starts_from_other_weights(detector: Path, streets: Path, tmp_path: Path) -> None:
    from vsuite.core import load_weights
    from vsuite.pointcloud.training import make_task, resolve_settings

    two = TINY_DETECTOR | {"sweeps": TINY_DETECTOR["sweeps"] | {"classes": ["Car", "Cyclist"]}}
    task, about = make_task(resolve_settings(data=streets, recipe=write_recipe(tmp_path, two), weights=str(detector)))
    assert "3 frames" in about
    model = task.build_model()
    before, _ = load_model(detector)
    assert torch.equal(model.voxel_encoder.vfe_layers[0].linear.weight, before.voxel_encoder.vfe_layers[0].linear.weight)
    assert model.class_names == ("Car", "Cyclist")
    assert load_weights(model, detector / "checkpoints" / "best.safetensors", strict=False).mismatched


def test_training_reads_the_columns_of_the_recipe(streets: Path, tmp_path: Path) -> None:
    from vsuite.pointcloud.training import make_task, resolve_settings

    def first_points(*columns: str) -> torch.Tensor:
        recipe = TINY_DETECTOR | {"sweeps": TINY_DETECTOR["sweeps"] | {"columns": list(columns), "paste": {}}}
        task, _ = make_task(resolve_settings(data=streets, recipe=write_recipe(tmp_path, recipe)))
        return task.training_data().sample(0, np.random.default_rng(0))["points"]

    assert first_points().shape[1] == 3
    points = first_points("intensity", "time")
    assert points.shape[1] == 5
    assert not points[:, 4].any()  # a single sweep, of age 0
    with pytest.raises(InputError, match=r"\.bin: has no column ring; its columns are: intensity"):
        first_points("ring")


def test_the_note_makes_inputs() -> None:
    note = ModelNote(task="detect", classes=["Car"], columns=["intensity"], column_scales={"intensity": 2.0}, tanh=["intensity"])
    points = np.arange(6, dtype=np.float32).reshape(2, 3)
    sweep = note.sweep(PointCloud(points, {"intensity": np.array([1, 4])}))
    assert sweep.tolist() == [[0, 1, 2, pytest.approx(np.tanh(0.5))], [3, 4, 5, pytest.approx(np.tanh(2.0))]]
    shape = ModelNote(task="classify", classes=["a"], points=12).shape(np.random.default_rng(0).normal(5, 2, (8, 3)).astype(np.float32))
    assert shape.shape == (12, 3)
    assert torch.equal(shape[8:], shape[:4])
    assert np.linalg.norm(unit_sphere(np.random.default_rng(1).normal(size=(9, 3)).astype(np.float32)), axis=1).max() == pytest.approx(1)
    with pytest.raises(InputError, match="7 points are too few"):
        note.shape(points[:1].repeat(7, axis=0))


def test_detections_are_sorted(detector: Path, streets: Path) -> None:
    found = Predictor(detector, device="cpu").detect(streets / "points" / "000000.bin", score_threshold=0.0)
    assert isinstance(found, Detections)
    assert (found.scores.diff() <= 0).all()


def test_demo(capsys, detector: Path, classifier: Path, tmp_path: Path, monkeypatch) -> None:
    from vsuite.pointcloud import demo

    monkeypatch.setattr(demo, "FRAMES", 1)
    given = ["--detector", detector, "--classifier", classifier]
    code, out, err = vsuite(capsys, "demo", "--out", tmp_path / "demo", *given)
    assert code == 0, err
    assert "1/2 simulating 1 streets" in out
    for name in ("streets.html", "street_0.png", "shapes.png", "boxes.json", "streets/metrics.json", "shapes/metrics.json"):
        assert (tmp_path / "demo" / name).is_file()
    code, _, err = vsuite(capsys, "demo", "--out", tmp_path / "demo")
    assert code == 2
    assert "holds an earlier demo" in err
    assert vsuite(capsys, "demo", "--out", tmp_path / "plain")[0] == 0
    accuracy = json.loads((tmp_path / "plain" / "shapes" / "metrics.json").read_text())
    assert "oa" in str(accuracy)
    assert "Car" in read_json(tmp_path / "plain" / "boxes.json")["street_0"].names  # the shipped weights find cars


def test_export(capsys, detector: Path, classifier: Path, tmp_path: Path) -> None:
    from vsuite.core import load_published

    assert vsuite(capsys, "export", "--weights", detector, "--published", "--out", tmp_path / "d.pth")[0] == 0
    options = {name: TINY_DETECTOR["options"][name] for name in ("window", "group_size", "num_heads", "voxel_size", "point_cloud_range")}
    assert load_published(tmp_path / "d.pth", **options).in_channels == 4
    code, _, err = vsuite(capsys, "export", "--weights", detector, "--out", tmp_path / "d.txt")
    assert code == 2
    assert "must end in .onnx" in err


def write_shapenetpart(root: Path) -> Path:
    """Laptops and tables of 40 points in ShapeNetPart's layout, the part told by the height."""
    rng = np.random.default_rng(0)
    (root / "train_test_split").mkdir(parents=True)
    for split, count in {"train": 4, "val": 2, "test": 2}.items():
        names = [f"{folder}/{split}{i}" for folder in ("03642806", "04379243") for i in range(count)]
        (root / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps([f"shape_data/{name}" for name in names]))
        for name in names:
            (root / name).parent.mkdir(exist_ok=True)
            points = rng.uniform(-1, 1, (40, 3))
            parts = (28 if name.startswith("036") else 47) + (points[:, 2] > 0)
            np.savetxt(root / f"{name}.txt", np.column_stack([points, np.tile([0, 0, 1], (40, 1)), parts]), fmt="%.5f")
    return root


def test_parts_are_evaluated_and_exported(capsys, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    from vsuite.pointcloud.training import resolve_settings, train

    recipe = TINY_CLASSIFIER | {
        "name": "tiny_parts",
        "task": "parts",
        "model": "gpsformer_parts",
        "options": {"stem_dim": 8, "widths": [8, 8], "num_neighbours": 4, "num_samples": [4, 4, 4]},
        "shapes": {"points": 32},
    }
    recipe["training"] = recipe["training"] | {"best_metric": "instance_miou"}
    data = write_shapenetpart(tmp_path / "data")
    settings = resolve_settings(data=data, recipe=write_recipe(tmp_path, recipe))
    train(settings, tmp_path / "run", device="cpu", say=lambda _: None)

    scores = tmp_path / "scores"
    code, out, _ = vsuite(capsys, "evaluate", "--data", data, "--weights", tmp_path / "run", "--split", "test", "--out", scores)
    assert code == 0
    assert "instance_miou: mean over shapes" in " ".join(out.split())
    found = json.loads((scores / "metrics.json").read_text())
    assert found["count"] == 4
    laptops, tables = found["categories"]["rows"]
    assert (laptops["name"], laptops["shapes"], tables["name"], tables["shapes"]) == ("Laptop", 2, "Table", 2)
    instance, by_class = (row["percent"] for row in found["parts"]["rows"])
    assert instance == by_class == pytest.approx((laptops["iou"] + tables["iou"]) / 2)
    # A table has a third part, which neither the truth nor a guess limited to the table's parts need have.
    predictor = Predictor(tmp_path / "run")
    table = read_cloud(data / "04379243" / "test0.txt", columns=["x", "y", "z", "nx", "ny", "nz", "label"])
    assert set(predictor.label_parts(table, "Table")) <= {47, 48, 49}

    assert vsuite(capsys, "export", "--weights", tmp_path / "run", "--out", tmp_path / "parts.onnx")[0] == 0
    session = onnxruntime.InferenceSession(tmp_path / "parts.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_inputs()] == ["points", "category"]
