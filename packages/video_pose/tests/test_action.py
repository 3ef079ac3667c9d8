"""Actions as a user meets them: training, prediction, streams, evaluation, pictures and export, with tiny models on made-up data."""

from __future__ import annotations

import csv
import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from vsuite.core import InputError, create_model, save_weights
from vsuite.core.weights import read_metadata
from vsuite.video_pose.action.clips import Video
from vsuite.video_pose.action.evaluate import evaluate
from vsuite.video_pose.action.export import export_onnx
from vsuite.video_pose.action.predict import Predictor, Wanted, predict_files, stream_video
from vsuite.video_pose.action.settings import ClipSettings
from vsuite.video_pose.action.task import Note, figures
from vsuite.video_pose.notes import NOTE
from vsuite.video_pose.settings import list_recipes, load_recipe
from vsuite.video_pose.skeletons import SKELETONS
from vsuite.video_pose.training import make_task, resolve_settings, train

sys.path.insert(0, str(Path(__file__).parent))
from action_data import CLASSES, annotated_videos, keypoints, motion, write_film, write_mocap, write_pickle

TINY_POSES = {"widths": (8, 16), "embed_dim": 32, "num_heads": 2, "heatmap_size": 12, "depth": 1}
TINY_FILM = {"widths": (4, 4, 8, 8), "blocks": 1, "embed_dim": 16, "num_heads": 2, "depth": 1}
TINY_STREAM = {"embed_dim": 16, "theta": 20.0}
STREAM = ClipSettings(frames=20, window=40, coordinates="body", fps=60.0)
TRAINING = {"batch_size": 6, "log_every": 5, "best_metric": "balanced_accuracy", "best_mode": "max", "learning_rate": 4e-3}


def weights_of(path: Path, model: str, options: dict[str, Any], note: Note) -> Path:
    """A file of untrained weights; the norms' statistics are not those of a fresh network, so that folding them matters."""
    torch.manual_seed(0)
    network = create_model(model, num_classes=len(note.classes), **options)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d | torch.nn.BatchNorm3d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_var.uniform_(0.1, 0.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.3)
    save_weights(network, path, metadata={NOTE: note.model_dump()})
    return path


@pytest.fixture(scope="module")
def stream_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    note = Note(classes=CLASSES, layout="h36m17", clip=STREAM, fraction=0.25)
    return weights_of(tmp_path_factory.mktemp("s") / "s.safetensors", "lmuformer_pose", TINY_STREAM | {"in_channels": 51}, note)


@pytest.fixture(scope="module")
def pose_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    note = Note(classes=CLASSES, layout="coco17", clip=ClipSettings(frames=6, people=2))
    return weights_of(tmp_path_factory.mktemp("p") / "p.safetensors", "deformable3d_pose_small", TINY_POSES, note)


@pytest.fixture(scope="module")
def film_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    note = Note(classes=CLASSES, layout="coco17", clip=ClipSettings(frames=4, size=32))
    return weights_of(tmp_path_factory.mktemp("f") / "f.safetensors", "deformable3d_gym99", TINY_FILM, note)


# --- training ---


def test_a_stream_model_learns_streams_and_is_judged(tmp_path: Path, vsuite: Callable[..., tuple[int, str, str]]) -> None:
    recipe = {
        "name": "tiny", "task": "action", "model": "lmuformer_pose", "options": TINY_STREAM,
        "training": TRAINING | {"steps": 40, "validate_every": 40}, "validation": {"fraction": 0.25},
        "action": {"layout": "h36m17", "clip": STREAM.model_dump()},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    data = write_mocap(tmp_path / "motion.npz", frames=60)
    out = tmp_path / "run"
    code, printed, _ = vsuite("train", "--data", data, "--recipe", tmp_path / "tiny.yaml", "--out", out)
    assert code == 0
    assert "7 videos to train on, 3 (6 clips) to validate on" in printed
    assert "its last 25% are held out: waving" in printed
    assert read_metadata(out / "checkpoints" / "best.safetensors")[NOTE]["classes"] == CLASSES
    assert (out / "pictures").is_dir()
    found = evaluate(out, data, tmp_path / "judged", stream=True)
    assert found["clips"]["balanced_accuracy"] == 1.0  # the three motions are easy to tell apart
    assert found["videos"]["count"] == 3
    assert found["stream"]["balanced_accuracy"] == 1.0
    assert found["stream"]["largest_difference_of_scores"] < 1e-4
    assert json.loads((tmp_path / "judged" / "metrics.json").read_text()) == json.loads(json.dumps(found))
    assert sorted(path.name for path in (tmp_path / "judged").iterdir()) == [
        "confusion.csv",
        "confusion.png",
        "metrics.json",
        "predictions.csv",
    ]
    code, printed, _ = vsuite("predict", data, "--weights", out, "--out", tmp_path / "said", "--stream", "--top", 2)
    assert code == 0
    assert "9 predicted" in printed
    said = json.loads((tmp_path / "said" / "actions.json").read_text())
    assert [one["label"] for one in said["videos"]] == [one["name"].split("/")[0] for one in said["videos"]]
    assert len(said["videos"][0]["top"]) == 2
    rows = list(csv.DictReader((tmp_path / "said" / said["videos"][0]["stream"]).open()))
    assert [int(row["frame"]) for row in rows] == list(range(0, 60, 2))
    assert rows[-1]["label"] == said["videos"][0]["label"]
    code, _, error = vsuite("predict", data, "--weights", out, "--out", tmp_path / "said")
    assert (code, "--overwrite replaces it" in error) == (2, True)


def test_a_pose_model_learns_from_a_pickle(tmp_path: Path) -> None:
    data = write_pickle(tmp_path / "a.pkl", annotated_videos())
    recipe = {
        "name": "tiny", "task": "action", "model": "deformable3d_pose_small", "options": TINY_POSES,
        "training": TRAINING | {"steps": 40, "validate_every": 40, "batch_size": 12, "learning_rate": 3e-3, "schedule": "constant"},
        "action": {"classes": CLASSES, "clip": {"frames": 6}, "test_clips": 2},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    result = train(resolve_settings(data=data, recipe=tmp_path / "tiny.yaml"), tmp_path / "run", device="cpu", say=lambda _: None)
    assert result.best_metrics["balanced_accuracy"] >= 0.66
    found = evaluate(tmp_path / "run", data, tmp_path / "judged", num_clips=3, device="cpu")
    assert found["clips"]["count"] == 18
    assert found["held_out"] == "split own_train / own_val"


def test_a_film_model_trains_on_films(tmp_path: Path) -> None:
    content = annotated_videos(each=3, frames=8)
    for entry in content["annotations"]:
        write_film(tmp_path / f"{entry['frame_dir']}.mp4", entry["keypoint"][0])
    data = write_pickle(tmp_path / "a.pkl", content)
    recipe = {
        "name": "tiny", "task": "action", "model": "deformable3d_gym99", "options": TINY_FILM,
        "training": TRAINING | {"steps": 3, "batch_size": 3, "validate_every": 3},
        "action": {"classes": CLASSES, "films": str(tmp_path), "clip": {"frames": 4, "size": 32}, "augment": {"crop": 0.56}},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    settings = resolve_settings(data=data, recipe=tmp_path / "tiny.yaml")
    result = train(settings, tmp_path / "run", device="cpu", say=lambda _: None)
    assert np.isfinite(result.best_metrics["loss"])
    found = evaluate(tmp_path / "run", data, tmp_path / "judged", films=tmp_path, device="cpu")
    assert found["clips"]["count"] == 6
    (tmp_path / "kicking_2.mp4").unlink()
    with pytest.raises(InputError, match=r"has no video called kicking_2\.mp4"):
        make_task(settings)
    without = resolve_settings(data=data, recipe=tmp_path / "tiny.yaml", overrides=["action.films=null"])
    with pytest.raises(InputError, match="has no film, and deformable3d_gym99 looks at one"):
        make_task(without)


# --- prediction ---


def test_a_video_is_the_mean_of_its_clips(stream_weights: Path) -> None:
    predictor = Predictor(stream_weights, device="cpu")
    video = Video.of(motion("waving", 100, np.random.default_rng(0)))
    found = predictor.predict(video)
    assert [(clip.first, clip.last) for clip in found.clips] == [(0, 38), (20, 58), (40, 78), (60, 98)]
    np.testing.assert_allclose(found.probabilities, np.mean([clip.probabilities for clip in found.clips], axis=0), rtol=1e-6)
    assert found.probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert found.top(1)[0][0] == found.label


def test_a_stream_ends_with_the_answer_for_its_clip(stream_weights: Path) -> None:
    predictor = Predictor(stream_weights, device="cpu")
    video = Video.of(motion("kicking", 40, np.random.default_rng(0), turned=1.0))
    decisions = stream_video(predictor, video)
    assert [one.frame for one in decisions] == list(range(0, 40, 2))
    assert np.ptp([one.probabilities for one in decisions], axis=0).max() > 1e-3  # it changes its mind on the way
    np.testing.assert_allclose(decisions[-1].probabilities, predictor.predict(video).probabilities, atol=1e-5)


def test_a_stream_forgets_what_lies_further_back_than_its_window(stream_weights: Path) -> None:
    predictor = Predictor(stream_weights, device="cpu")
    stream = predictor.stream()
    assert stream.delay == 10
    assert stream.seconds == pytest.approx(1 / 6)
    video = Video.of(motion("kicking", 200, np.random.default_rng(0)))
    late = stream_video(predictor, video)[-1]
    part = video.part(40, 200, "later")  # the memory reaches back 20 samples, the mean 20: after 160 frames the start is forgotten
    np.testing.assert_allclose(late.probabilities, stream_video(predictor, part)[-1].probabilities, atol=1e-3)


def test_streams_take_late_people_and_refuse_other_shapes(stream_weights: Path) -> None:
    stream = Predictor(stream_weights, device="cpu").stream()
    assert stream.push(np.zeros((0, 17, 3))) is None
    with pytest.raises(InputError, match=r"a frame of the stream is people, 17 joints \(h36m17\), 3; got \(1, 16, 3\)"):
        stream.push(np.zeros((16, 3)))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"form": "spiking_attention"}, "spiking form with self-attention looks at later frames too and does not stream"),
        ({"window": None}, "do not stream"),
        ({"coordinates": "start"}, "depend on other frames of a clip"),
    ],
)
def test_what_does_not_stream_says_so(change: dict[str, Any], match: str, tmp_path: Path) -> None:
    clip = ClipSettings.model_validate(STREAM.model_dump() | {k: v for k, v in change.items() if k != "form"})
    options = TINY_STREAM | {"in_channels": 51, "form": change.get("form", "lmu")}
    path = weights_of(tmp_path / "w.safetensors", "lmuformer_pose", options, Note(classes=CLASSES, layout="h36m17", clip=clip))
    with pytest.raises(InputError, match=match):
        Predictor(path, device="cpu").stream()


def test_the_spiking_form_with_a_memory_streams(tmp_path: Path) -> None:
    options = TINY_STREAM | {"in_channels": 51, "form": "spiking"}
    path = weights_of(tmp_path / "w.safetensors", "lmuformer_pose", options, Note(classes=CLASSES, layout="h36m17", clip=STREAM))
    predictor = Predictor(path, device="cpu")
    video = Video.of(motion("kicking", 40, np.random.default_rng(0)))
    np.testing.assert_allclose(stream_video(predictor, video)[-1].probabilities, predictor.predict(video).probabilities, atol=1e-5)


def test_attention_is_shown_over_joints_and_frames(pose_weights: Path, tmp_path: Path) -> None:
    predictor = Predictor(pose_weights, device="cpu")
    joints = np.stack([keypoints("waving", 20, np.random.default_rng(0)), np.zeros((20, 17, 2))])
    attention, frames = predictor.explain(Video.of(joints))
    assert attention.shape == (2, 6, 17)
    assert len(frames) == 6
    assert attention[0].sum() == pytest.approx(1, abs=1e-5)
    assert not attention[1].any()  # nobody is there
    np.save(tmp_path / "v.npy", joints[0])
    done = predict_files(predictor, [tmp_path / "v.npy"], tmp_path / "out", wanted=Wanted(explain=True))
    assert not done.failed
    assert (tmp_path / "out" / "v_attention.png").read_bytes().startswith(b"\x89PNG")


def test_lmuformer_has_no_attention_and_the_transformer_no_stream(pose_weights: Path, stream_weights: Path, tmp_path: Path) -> None:
    data = write_mocap(tmp_path / "m.npz", each=2)
    with pytest.raises(InputError, match="no attention over joints"):
        predict_files(Predictor(stream_weights, device="cpu"), [data], tmp_path / "out", wanted=Wanted(explain=True))
    with pytest.raises(InputError, match="PoseTransformer looks at whole clips and does not stream"):
        predict_files(Predictor(pose_weights, device="cpu"), [data], tmp_path / "out", wanted=Wanted(stream=True))
    assert not (tmp_path / "out").exists()


def test_everybody_on_their_own(pose_weights: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    np.save(tmp_path / "v.npy", np.stack([keypoints("waving", 10, rng), keypoints("kicking", 10, rng) + 30]))
    done = predict_files(Predictor(pose_weights, device="cpu"), [tmp_path / "v.npy"], tmp_path / "out", wanted=Wanted(each_person=True))
    assert [line.split(":")[0] for line in done.lines] == ["v person 0", "v person 1"]


def test_films_with_their_poses_and_films_of_no_one(film_weights: Path, tmp_path: Path) -> None:
    joints = keypoints("waving", 8, np.random.default_rng(0))
    film = write_film(tmp_path / "v.mp4", joints)
    np.save(tmp_path / "v.npy", joints)
    predictor = Predictor(film_weights, device="cpu")
    done = predict_files(predictor, [film], tmp_path / "out", wanted=Wanted(num_clips=2, explain=True))
    assert (len(done.lines), done.failed) == (1, [])
    nobody = Video("x", np.zeros((0, 8, 17, 2), np.float32), np.zeros((0, 8, 17), np.float32), image_shape=(48, 64), film=film)
    assert predictor.predict(nobody).probabilities.sum() == pytest.approx(1, abs=1e-5)  # a film alone
    np.save(tmp_path / "v.npy", joints[:6])
    done = predict_files(predictor, [film], tmp_path / "out", overwrite=True)
    assert done.failed == [f"{film}: has 8 frames, but there are poses for 6"]


def test_videos_of_one_name_and_patterns(pose_weights: Path, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "v.npy", keypoints("waving", 10, np.random.default_rng(0)))
    predictor = Predictor(pose_weights, device="cpu")
    done = predict_files(predictor, [str(tmp_path / "?" / "*.npy")], tmp_path / "out", wanted=Wanted(explain=True))
    assert (len(done.lines), done.failed) == (2, [])
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"v_attention.png", "v_2_attention.png"}


# --- what users give wrongly ---


def test_one_bad_file_does_not_stop_the_others(pose_weights: Path, tmp_path: Path, vsuite: Callable[..., tuple[int, str, str]]) -> None:
    rng = np.random.default_rng(0)
    joints = keypoints("waving", 10, rng)
    bad = {
        "joints": (joints[:, :16], "joints"),
        "one": (joints[:1], "one frame"),
        "nan": (np.full_like(joints, np.nan), "missing"),
        "units": (joints / 1000, "must be in pixels"),
    }
    np.save(tmp_path / "good.npy", joints)
    for name, (array, _) in bad.items():
        np.save(tmp_path / f"{name}.npy", array)
    (tmp_path / "film.mp4").write_bytes(b"no film")
    np.save(tmp_path / "film.npy", joints)
    files = [tmp_path / f"{name}.npy" for name in (*bad, "good")] + [tmp_path / "film.mp4"]
    done = predict_files(Predictor(pose_weights, device="cpu"), files, tmp_path / "out")
    assert [line.split(":")[0] for line in done.lines] == ["good"]
    for error, (name, (_, match)) in zip(done.failed, bad.items(), strict=False):
        assert name in error
        assert match in error
        assert "\n" not in error
    assert done.failed[-1] == f"{tmp_path / 'film.mp4'}: does not decode as a video"
    code, _, error = vsuite("predict", tmp_path / "units.npy", "--weights", pose_weights, "--out", tmp_path / "again")
    assert code == 2
    assert len(error.strip().splitlines()) == 1


class Program:
    def __reduce__(self) -> Any:
        import os

        return os.system, ("touch ran",)


def test_a_pickle_that_asks_for_more_is_refused(
    pose_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vsuite: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.pkl").write_bytes(pickle.dumps(annotated_videos() | {"more": Program()}))
    code, _, error = vsuite("predict", "x.pkl", "--weights", pose_weights)
    assert code == 2
    assert "nothing was run" in error
    assert not Path("ran").exists()


def test_data_of_other_classes_or_labels(pose_weights: Path, stream_weights: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "m.npz", **{f"flying/{i}": np.ones((40, 17, 3), np.int16) for i in range(3)})
    with pytest.raises(InputError, match="its classes flying are not the model's, kicking, standing, waving"):
        evaluate(stream_weights, tmp_path / "m.npz", tmp_path / "out", device="cpu")
    content = annotated_videos()
    for entry in content["annotations"]:
        entry["label"] += 1
    with pytest.raises(InputError, match="label"):
        evaluate(pose_weights, write_pickle(tmp_path / "a.pkl", content), tmp_path / "out", device="cpu")


def test_a_model_for_something_else_and_missing_files(
    pose_weights: Path, tmp_path: Path, vsuite: Callable[..., tuple[int, str, str]]
) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        predict_files(Predictor(pose_weights, device="cpu"), [tmp_path / "none.npy"], tmp_path / "out")
    code, _, error = vsuite("predict", tmp_path, "--weights", pose_weights, "--task", "keywords")
    assert code == 2
    assert "is for the task 'action', not 'keywords'" in error
    data = write_mocap(tmp_path / "m.npz")
    settings = resolve_settings(data=data, recipe="lmuformer_mocap", overrides=["model=convformer_t27"])
    with pytest.raises(InputError, match="is a model for lifting"):
        train(settings, tmp_path / "run", device="cpu")


# --- figures, export, recipes ---


def test_balanced_accuracy_counts_classes_alike() -> None:
    scores = np.eye(3)[[0, 0, 0, 0, 1, 0, 2]]
    found = figures(scores, np.array([0, 0, 0, 0, 1, 1, 2]), CLASSES)
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert found["top1"] == pytest.approx(6 / 7)
    assert found["recall/standing"] == 0.5
    assert "top5" not in found


@pytest.mark.parametrize("kind", ["stream", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("pose", "film"))])
def test_onnx(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    said = export_onnx(request.getfixturevalue(f"{kind}_weights"), tmp_path / "m.onnx")
    assert "differs from the model by at most" in said
    assert (tmp_path / "m.onnx").stat().st_size > 1000
    with pytest.raises(InputError, match=r"must end in \.onnx"):
        export_onnx(request.getfixturevalue(f"{kind}_weights"), tmp_path / "m.pt")


@pytest.mark.parametrize("name", [name for name in list_recipes() if load_recipe(name).task == "action"])
def test_recipes_fit_their_models(name: str) -> None:
    recipe = load_recipe(name)
    layout = SKELETONS[recipe.action.layout]
    from vsuite.video_pose.action.samples import check_form, form_of, sizes_of

    with torch.device("meta"):
        form = form_of(create_model(recipe.model))
        check_form(form, recipe.action.clip)
        model = create_model(recipe.model, num_classes=5, **(sizes_of(form, recipe.action.clip, layout) | recipe.options))
    assert sum(parameter.numel() for parameter in model.parameters()) > 10_000
