"""Lifting as a user meets it: train, predict, evaluate, export, demo, with a tiny model on made-up walks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from vsuite.core import InputError
from vsuite.core.weights import read_metadata
from vsuite.video_pose.cameras import denormalize_screen
from vsuite.video_pose.lift.export import export_onnx
from vsuite.video_pose.lift.mocap import make_videos, read_mocap
from vsuite.video_pose.lift.predict import SHIPPED, Predictor
from vsuite.video_pose.lift.settings import LiftSettings
from vsuite.video_pose.lift.walk import make_walk
from vsuite.video_pose.metrics.pose import mpjpe
from vsuite.video_pose.notes import NOTE
from vsuite.video_pose.settings import list_recipes, load_recipe
from vsuite.video_pose.skeletons import COCO17, H36M17

SIZE = (1000, 1000)
TINY = {
    "name": "tiny",
    "task": "lift",
    "model": "convformer_t9",
    "options": {
        "embed_dim": 8,
        "spatial_depth": 1,
        "temporal_depth": 1,
        "num_heads": 2,
        "kernel_sizes": [3],
        "dropout": 0.0,
        "drop_path_rate": 0.0,
    },
    "training": {"steps": 60, "batch_size": 16, "learning_rate": 3e-3, "validate_every": 60, "log_every": 20, "best_metric": "mpjpe"},
    "validation": {"fraction": 0.5, "most": 4, "pictures": 2},
}


@pytest.fixture(scope="module")
def mocap(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "walks.npz"
    np.savez(path, **{f"walking/walk_{i}": (1000 * make_walk(1.0, seed=i)).round().astype(np.int16) for i in range(4)})
    return path


@pytest.fixture(scope="module")
def trained(mocap: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from vsuite.video_pose.training import resolve_settings, train

    folder = tmp_path_factory.mktemp("runs")
    (folder / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    train(resolve_settings(data=mocap, recipe=folder / "tiny.yaml"), folder / "run", device="cpu", say=lambda _: None)
    return folder / "run"


@pytest.fixture(scope="module")
def detections(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people, 2D, in the model's layout."""
    folder = tmp_path_factory.mktemp("detections")
    seen = [denormalize_screen(screen_of(seed), *SIZE) for seed in (5, 6)]
    np.savez(folder / "two.npz", poses_2d=np.stack(seen), layout="h36m17", size=SIZE, fps=60.0)
    np.savez(folder / "one.npz", poses_2d=seen[0], layout="h36m17", size=SIZE, fps=60.0)
    return folder


def screen_of(seed: int) -> np.ndarray:
    from vsuite.video_pose.lift.mocap import Sequence3D

    settings = LiftSettings(cameras_per_shot=1)
    return make_videos([Sequence3D("walking/walk", make_walk(0.5, seed=seed))], settings)[0].poses_2d


def test_training_learns_and_leaves_what_prediction_needs(trained: Path) -> None:
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.85 * losses[0]
    note = read_metadata(trained / "checkpoints" / "best.safetensors")[NOTE]
    assert (note["task"], note["layout"], note["fps"], note["field_of_view"]) == ("lift", "h36m17", 60.0, 50.0)
    assert len(note["trained_on"]) == 2
    assert list((trained / "pictures").rglob("poses.png"))
    assert (trained / "report.html").is_file()


def test_predict_writes_every_form(vsuite, trained: Path, detections: Path, tmp_path: Path) -> None:
    out = tmp_path / "found"
    arguments = ["predict", detections / "two.npz", "--task", "lift", "--weights", trained, "--out", out, "--device", "cpu"]
    code, said, err = vsuite(*arguments, "--format", "npz,json,bvh")
    assert code == 0, err
    assert "2 people, 60 poses" in said
    assert "field of view of 50 degrees, assumed" in said
    content = json.loads((out / "two.json").read_text())
    assert content["layout"] == "h36m17"
    assert len(content["people"]) == 2
    assert np.shape(content["people"][0]["poses_3d"]) == (30, 17, 3)
    with np.load(out / "two_person0.npz") as file:
        assert file["poses_3d"].shape == (30, 17, 3)
        assert file["root"].shape == (30, 3)
        assert str(file["layout"]) == "h36m17"
        assert not file["interpolated"].any()
        np.testing.assert_array_equal(file["poses_3d"][:, 0], 0)
        np.testing.assert_allclose(file["poses_3d"], content["people"][0]["poses_3d"], atol=1e-5)
    assert (out / "two_person1.bvh").read_text().startswith("HIERARCHY")
    code, _, err = vsuite(*arguments)
    assert code == 2
    assert "exists; --overwrite replaces it" in err
    assert vsuite(*arguments, "--overwrite", "--people", "1")[0] == 0


def test_film_and_page(vsuite, trained: Path, detections: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    arguments = ["predict", detections / "one.npz", "--weights", trained, "--out", tmp_path, "--render", "gif", "--page"]
    code, _, err = vsuite(*arguments, "--device", "cpu")
    assert code == 0, err
    assert (tmp_path / "one.gif").read_bytes()[:4] == b"GIF8"
    assert "<html" in (tmp_path / "one.html").read_text()


def test_the_python_api_agrees_with_the_model(trained: Path) -> None:
    predictor, screen = Predictor(trained, device="cpu"), screen_of(3)
    found = predictor.lift(denormalize_screen(screen, *SIZE), SIZE, flip=False)
    import torch

    from vsuite.core import load_published

    model = load_published(trained / "checkpoints" / "best.safetensors").eval()
    wanted = model.lift(torch.from_numpy(screen)).numpy()
    np.testing.assert_allclose(found.poses, wanted - wanted[:, :1], atol=1e-5)
    assert found.root is not None
    assert found.field_of_view == 50
    flipped = predictor.lift(denormalize_screen(H36M17.flip(screen), *SIZE), SIZE).poses
    np.testing.assert_allclose(H36M17.flip(flipped), predictor.lift(denormalize_screen(screen, *SIZE), SIZE).poses, atol=1e-5)


def test_other_rates_are_brought_to_the_models(trained: Path) -> None:
    """A video at half the rate gives nearly what every other frame of the whole one gives."""
    predictor, pixels = Predictor(trained, device="cpu"), denormalize_screen(screen_of(4), *SIZE)
    whole = predictor.lift(pixels, SIZE, fps=60).poses
    half = predictor.lift(pixels[::2], SIZE, fps=30).poses
    assert half.shape == whole[::2].shape
    assert mpjpe(half, whole[::2]) < 0.01
    assert mpjpe(predictor.lift(pixels[::2], SIZE).poses, whole[::2]) > 2 * mpjpe(half, whole[::2])


def test_a_layout_that_converts(vsuite, trained: Path, tmp_path: Path) -> None:
    """COCO's joints in, Human3.6M's out; missing joints are told."""
    coco = np.zeros((30, 17, 2), np.float32)
    seen = denormalize_screen(screen_of(2), *SIZE)
    for joint, name in enumerate(COCO17.names):
        coco[:, joint] = seen[:, H36M17.names.index(name if name in H36M17.names else "head")]
    coco[3, 9] = np.nan
    np.save(tmp_path / "walk.npy", coco)
    arguments = ["predict", tmp_path / "walk.npy", "--weights", trained, "--out", tmp_path / "out", "--device", "cpu"]
    code, said, err = vsuite(*arguments, "--layout", "coco17", "--size", "1000x1000", "--fps", "60", "--fov", "60")
    assert code == 0, err
    assert "1 of 30 with joints interpolated" in said
    assert "field of view of 60 degrees, as given" in said
    code, _, err = vsuite(*arguments, "--layout", "coco17", "--overwrite")
    assert code == 2
    assert "give --size WIDTHxHEIGHT" in err
    code, _, err = vsuite(*arguments, "--size", "1000x1000", "--overwrite")
    assert code == 2
    assert "name the layout (--layout): coco17, h36m17" in err


def bad_files(folder: Path) -> dict[str, str]:
    good = denormalize_screen(screen_of(1), *SIZE)
    arrays = {
        "joints": (good[:, :16], "16 joints, and the layout h36m17 17"),
        "nan": (np.full_like(good, np.nan), "every joint of nan is missing"),
        "frame": (good[:1], "has one frame"),
        "shares": (good / 1000, "the coordinates must be pixels"),
        "hidden": (np.where(np.arange(17)[:, None] == 3, np.nan, good), "no frame shows what right_ankle is made from"),
    }
    for name, (array, _) in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return {name: message for name, (_, message) in arrays.items()}


def test_bad_inputs_are_one_line_each(vsuite, trained: Path, tmp_path: Path) -> None:
    options = ["--weights", trained, "--layout", "h36m17", "--size", "1000x1000", "--fps", "60", "--device", "cpu"]
    for name, message in bad_files(tmp_path).items():
        code, _, err = vsuite("predict", tmp_path / f"{name}.npy", "--out", tmp_path / "out", *options)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    np.save(tmp_path / "good.npy", denormalize_screen(screen_of(1), *SIZE))
    code, said, err = vsuite("predict", tmp_path, "--out", tmp_path / "out", *options)
    assert code == 2
    assert "1 predicted" in said
    assert "5 of 6 failed" in err
    for arguments, message in (
        (["--layout", "coco"], "unknown joint layout 'coco'"),
        (["--size", "1000"], "is not of the form 1920x1080"),
        (["--format", "fbx"], "unknown format 'fbx'"),
        (["--task", "action"], "is for the task 'lift'"),
    ):
        code, _, err = vsuite("predict", tmp_path / "good.npy", "--out", tmp_path / "new", *options, *arguments)
        assert (code, message in err) == (2, True), err


def test_evaluate_counts_unseen_sequences_alone(vsuite, trained: Path, mocap: Path, tmp_path: Path) -> None:
    arguments = ["evaluate", "--data", mocap, "--weights", trained, "--out", tmp_path, "--device", "cpu"]
    code, said, err = vsuite(*arguments)
    assert code == 0, err
    assert "2 of 4 sequences" in said.replace("\n", " ")
    content = json.loads((tmp_path / "metrics.json").read_text())
    assert set(content["noise"]) == {"0 px", "5 px"}
    assert content["noise"]["0 px"]["num_frames"] == 2 * 60 * 4
    average = content["noise"]["0 px"]["average"]
    assert set(average) == {"mpjpe", "p_mpjpe", "n_mpjpe", "mpjve", "pck", "auc"}
    assert 0 < average["p_mpjpe"] < average["n_mpjpe"] * 1.01 < average["mpjpe"] * 1.02
    assert (tmp_path / "actions.csv").read_text().count("walking") == 2
    assert len((tmp_path / "joints.csv").read_text().splitlines()) == 1 + 2 * 17
    assert (tmp_path / "poses.png").stat().st_size > 10_000
    # The figures of training, which are of the same videos.
    best = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert any("mpjpe/0px" in str(line) for line in best)
    whole = tmp_path / "trained.npz"
    note = read_metadata(trained / "checkpoints" / "best.safetensors")[NOTE]
    np.savez(whole, **{s.name: (1000 * s.poses).astype(np.int16) for s in read_mocap(mocap) if s.name in note["trained_on"]})
    code, _, err = vsuite("evaluate", "--data", whole, "--weights", trained, "--out", tmp_path)
    assert code == 2
    assert "has learnt from all 2 sequences" in err
    code, _, err = vsuite(*arguments, "--noise", "x")
    assert code == 2
    assert "is no list of numbers" in err


@pytest.mark.slow
def test_export_agrees_with_onnxruntime(vsuite, trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    code, said, err = vsuite("export", "--weights", trained, "--out", tmp_path / "lifter.onnx")
    assert code == 0, err
    assert "windows of 9 frames in the layout h36m17; differs from the model by at most" in said
    code, _, err = vsuite("export", "--weights", trained, "--out", tmp_path / "lifter.onnx")
    assert code == 2
    assert "--overwrite" in err
    with pytest.raises(InputError, match=r"must end in \.onnx"):
        export_onnx(trained, tmp_path / "lifter.pt")


def test_recipes_build_their_models() -> None:
    from vsuite.core import create_model
    from vsuite.video_pose.models.lifter import Lifter

    recipes = [load_recipe(name) for name in list_recipes()]
    lifting = [recipe for recipe in recipes if recipe.task == "lift"]
    assert {recipe.name for recipe in lifting} >= {"convformer_mocap", "poseformer_mocap", "videopose3d_mocap", "convformer_h36m"}
    for recipe in lifting:
        assert isinstance(create_model(recipe.model, **recipe.options), Lifter)


@pytest.mark.slow
def test_the_demo_with_the_shipped_weights(vsuite, tmp_path: Path) -> None:
    out = tmp_path / "demo"
    code, said, err = vsuite("demo", "--out", out)
    assert code == 0, err
    for ending in ("npz", "json", "bvh", "mp4", "html"):
        assert (out / "lifted" / f"walk.{ending}").is_file()
    assert "a walk that no model has seen" in said
    code, _, err = vsuite("demo", "--out", out)
    assert code == 2
    assert "--overwrite" in err


def test_shipped_weights_lift_a_walk() -> None:
    """Far better than a body that stands still: the walker of the demo, whom no recording shows."""
    from vsuite.video_pose.lift.evaluate import judge
    from vsuite.video_pose.lift.mocap import Sequence3D

    predictor = Predictor(SHIPPED, device="cpu")
    videos = make_videos([Sequence3D("walking/walk", make_walk(1.0, seed=11))], LiftSettings())
    assert judge(predictor, videos, 5.0).average["mpjpe"] < 80


def film_of(path: Path, frames: int, size: tuple[int, int] = SIZE) -> Path:
    """Frame i is of brightness 4 i."""
    from vsuite.video_pose.render.writer import film_writer

    with film_writer(path, 30.0, size) as write:
        for number in range(frames):
            write(np.full((size[1], size[0], 3), 4 * number, np.uint8))
    return path


@pytest.mark.parametrize(("frames", "start"), [(30, 0), (45, 10)], ids=["as many frames as poses", "poses begin later"])
def test_poses_are_drawn_over_their_video(vsuite, trained: Path, tmp_path: Path, frames: int, start: int) -> None:
    from vsuite.video_pose.data.videos import read_frames

    seen = denormalize_screen(screen_of(5), *SIZE)
    lines = [",".join(["frame", *(f"{axis}{joint}" for joint in range(17) for axis in "xy")])]
    lines += [",".join(map(str, [start + number, *pose.ravel()])) for number, pose in enumerate(seen)]
    (tmp_path / "walk.csv").write_text("\n".join(lines))
    film = film_of(tmp_path / "film.mp4", frames)
    arguments = ["predict", tmp_path / "walk.csv", "--layout", "h36m17", "--weights", trained, "--device", "cpu", "--no-flip"]
    code, _, err = vsuite(*arguments, "--video", film, "--out", tmp_path / "out")  # which says size and rate, too
    assert code == 0, err
    content = json.loads((tmp_path / "out" / "walk.json").read_text())
    assert (content["size"], content["fps"], content["people"][0]["first_frame"]) == (list(SIZE), 30.0, start)
    for number in (0, 29):
        corner = read_frames(tmp_path / "out" / "walk.mp4", [number])[0, 2:12, 2:12].mean()
        assert corner == pytest.approx(4 * (start + number), abs=5)


def test_videos_that_are_not_those_of_the_poses(vsuite, trained: Path, detections: Path, tmp_path: Path) -> None:
    arguments = ["predict", "--weights", trained, "--device", "cpu", "--out", tmp_path / "out"]
    short, small = film_of(tmp_path / "short.mp4", 12), film_of(tmp_path / "small.mp4", 30, (64, 64))
    for film, message in ((short, "has 12 frames"), (small, "64x64"), (tmp_path / "absent.mp4", "no such file")):
        code, _, err = vsuite(*arguments, detections / "one.npz", "--video", film)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err
    code, _, err = vsuite(*arguments, detections, "--video", short)
    assert code == 2
    assert "2 inputs" in err
    assert not (tmp_path / "out").exists()


def test_a_bystander_without_legs_does_not_stop_the_others(vsuite, trained: Path, detections: Path, tmp_path: Path) -> None:
    with np.load(detections / "two.npz") as file:
        both = file["poses_2d"].copy()
    both[1][:, H36M17.names.index("left_ankle")] = np.nan
    np.savez(tmp_path / "crowd.npz", poses_2d=both, layout="h36m17", size=SIZE, fps=60.0)
    arguments = ["predict", "--weights", trained, "--device", "cpu", "--out", tmp_path / "out"]
    code, said, err = vsuite(*arguments, tmp_path / "crowd.npz")
    assert code == 0, err
    assert "1 person, 30 poses" in said
    assert "left out: person 1: no frame shows what left_ankle is made from" in said
    np.savez(tmp_path / "alone.npz", poses_2d=both[1], layout="h36m17", size=SIZE, fps=60.0)
    code, _, err = vsuite(*arguments, tmp_path / "alone.npz")
    assert code == 2
    assert "no frame shows" in err


def test_results_with_brackets_in_their_names_are_not_replaced(vsuite, trained: Path, detections: Path, tmp_path: Path) -> None:
    (tmp_path / "clip[1].npz").write_bytes((detections / "two.npz").read_bytes())
    arguments = ["predict", tmp_path / "clip[1].npz", "--weights", trained, "--device", "cpu", "--out", tmp_path / "out", "--format", "npz"]
    assert vsuite(*arguments)[0] == 0
    assert vsuite(*arguments)[0] == 2


@pytest.mark.parametrize("options", [{"fps": 0.0}, {"fps": float("nan")}, {"fps": 1e-9}, {"field_of_view": 200.0}, {"field_of_view": 0.0}])
def test_impossible_rates_and_angles(trained: Path, detections: Path, options: dict[str, float]) -> None:
    with np.load(detections / "one.npz") as file, pytest.raises(InputError, match=r"fps|field_of_view"):
        Predictor(trained, device="cpu").lift(file["poses_2d"], SIZE, **options)


def test_one_bad_video_of_a_file_does_not_stop_the_others(vsuite, trained: Path, tmp_path: Path) -> None:
    seen = denormalize_screen(screen_of(5), *SIZE)
    content = {"layout_name": "h36m", "num_joints": 17, "video_metadata": {"S1": {"w": 1000, "h": 1000}}}
    positions = {"S1": {"walk": [seen / 1000, seen], "walk/": [seen], "walk-": [seen]}}  # shares of the picture; names that become one
    np.savez(tmp_path / "d.npz", positions_2d=np.array(positions, dtype=object), metadata=np.array(content, dtype=object))
    arguments = ["predict", tmp_path / "d.npz", "--weights", trained, "--device", "cpu", "--out", tmp_path / "out", "--overwrite"]
    code, said, err = vsuite(*arguments, "--format", "json")
    assert code == 2
    assert "2 predicted" in said
    assert "2 of 4 failed" in err
    assert "two inputs are called 'S1_walk-_0'" in err
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"S1_walk_1.json", "S1_walk-_0.json"}
