"""Video prediction end to end with tiny models: data sets, training, prediction, evaluation, export, and what is refused."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from vsuite.core.errors import InputError
from vsuite.video_pose.data.digits import draw_digits, read_digits
from vsuite.video_pose.data.videos import list_pictures, stream_frames
from vsuite.video_pose.forecast.clips import MovingDigits, clip_starts
from vsuite.video_pose.forecast.data import find_layout, held_out, read_data
from vsuite.video_pose.forecast.evaluate import evaluate
from vsuite.video_pose.forecast.figures import Figures
from vsuite.video_pose.forecast.note import Note
from vsuite.video_pose.forecast.predict import Predictor, predict_files
from vsuite.video_pose.forecast.settings import ForecastSettings
from vsuite.video_pose.metrics.forecast import openstl_metrics
from vsuite.video_pose.render.writer import film_writer
from vsuite.video_pose.settings import list_recipes, load_recipe
from vsuite.video_pose.training import make_task, resolve_settings, train

TINY: dict[str, Any] = {
    "name": "tiny",
    "task": "forecast",
    "model": "predformer_mnist_binary_ts",
    "options": {"patch_size": 16, "embed_dim": 16, "num_layers": 1, "num_heads": 2, "head_dim": 8, "mlp_ratio": 1},
    "training": {"steps": 2, "batch_size": 2, "validate_every": 2, "log_every": 1, "best_metric": "mse"},
    "forecast": {"frames": 4, "clips": 20, "digits": 1},
    "validation": {"most": 3, "pictures": 1},
}


def recipe(folder: Path, **changes: Any) -> Path:
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, **changes}))
    return path


def trained(folder: Path, data: object, **changes: Any) -> Path:
    train(resolve_settings(data=str(data), recipe=recipe(folder, **changes)), folder / "run", device="cpu", say=lambda _: None)
    return folder / "run"


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("digits") / "digits.npz"
    np.savez(path, digits=draw_digits(30, seed=5))
    return path


@pytest.fixture(scope="module")
def run_folder(digits_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("runs"), digits_file)


@pytest.fixture(scope="module")
def predictor(run_folder: Path) -> Predictor:
    return Predictor(run_folder, device="cpu")


def moving_square(frames: int, side: int = 64) -> np.ndarray:
    """T, H, W, 3, uint8: a white square that moves right by two pixels a frame."""
    video = np.zeros((frames, side, side, 3), np.uint8)
    for number, frame in enumerate(video):
        frame[20:40, 2 * number : 2 * number + 20] = 255
    return video


def write_video(path: Path, video: np.ndarray) -> Path:
    with film_writer(path, 10, (video.shape[2], video.shape[1])) as write:
        for frame in video:
            write(frame)
    return path


def write_pictures(folder: Path, video: np.ndarray) -> Path:
    from PIL import Image

    folder.mkdir(parents=True)
    for number, frame in enumerate(video):
        Image.fromarray(frame).save(folder / f"frame_{number}.png")
    return folder


# Data


def test_digits_of_an_idx_file_are_those_of_an_npz(tmp_path: Path) -> None:
    digits = draw_digits(12, seed=3)
    assert digits.shape == (12, 28, 28)
    assert (digits.max(axis=(1, 2)) > 200).all()
    content = struct.pack(">4i", 2051, *digits.shape) + digits.tobytes()
    (tmp_path / "train-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))
    np.savez(tmp_path / "a.npz", x_train=digits)
    for name in ("train-images-idx3-ubyte", "train-images-idx3-ubyte.gz", "a.npz"):
        assert (read_digits(tmp_path / name) == digits).all()
    (tmp_path / "short-idx3-ubyte").write_bytes(content[:-5])
    (tmp_path / "labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 12) + bytes(12))
    (tmp_path / "broken.gz").write_bytes(b"\x1f\x8bnothing")
    np.savez(tmp_path / "labels.npz", y=digits)
    np.savez(tmp_path / "floats.npz", digits=digits / 255)
    for name, message in (("short-idx3-ubyte", "12 pictures of 28 x 28"), ("labels-idx1-ubyte", "no idx file"), ("broken.gz", "cannot be")):
        with pytest.raises(InputError, match=message):
            read_digits(tmp_path / name)
    for name, message in (("labels.npz", "it has y"), ("floats.npz", "bytes"), ("absent.npz", "cannot be read")):
        with pytest.raises(InputError, match=message):
            read_digits(tmp_path / name)


def test_moving_mnist_trains_on_some_digits_and_is_judged_by_others_that_stay(digits_file: Path) -> None:
    data = read_data(digits_file, ForecastSettings(frames=5, clips=7))
    training, validation = held_out(data, 0.1, None)
    assert len(training) == 7
    assert training.shape == (10, 1, 64, 64)
    test = data.split(None)
    assert isinstance(training, MovingDigits)
    assert isinstance(test, MovingDigits)
    assert len(training.digits) == 27
    assert len(test.digits) == 3
    assert (test.clip(4, None) == test.clip(4, None)).all()
    assert (test.clip(4, None) != validation.clip(4, None)).any()
    first, second = (training.clip(0, np.random.default_rng(seed)) for seed in (0, 1))
    assert (first != second).any()
    assert first.dtype == np.float32
    assert 0 <= first.min() < first.max() <= 1


def test_the_fixed_test_sequences_are_taken_where_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sequences = rng.integers(0, 255, (20, 3, 64, 64), np.uint8)
    np.save(tmp_path / "mnist_test_seq.npy", sequences)
    only = read_data(tmp_path, ForecastSettings(frames=10))
    assert list(only.splits) == ["test"]
    np.testing.assert_array_equal(only.split("test").clip(2, None)[:, 0], sequences[:, 2].astype(np.float32) / 255)
    np.savez(tmp_path / "digits.npz", digits=draw_digits(10))
    both = read_data(tmp_path, ForecastSettings(frames=10))
    assert len(both.split(None)) == 3
    with pytest.raises(InputError, match="nothing to train on"):
        held_out(only, 0.1, None)
    with pytest.raises(InputError, match="24 frames or more"):
        read_data(tmp_path, ForecastSettings(frames=12))


def test_taxibj_is_brought_to_zero_and_one_and_its_halves_follow_each_other(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {f"{letter}_{split}": rng.uniform(-1, 1, (6, 4, 2, 32, 32)) for letter in "XY" for split in ("train", "test")}
    np.savez(tmp_path / "dataset.npz", **arrays)
    data = read_data(tmp_path, ForecastSettings(frames=4))
    clip = data.split("test").clip(5, None)
    np.testing.assert_allclose(clip[:4], (arrays["X_test"][5] + 1) / 2, atol=1e-6)
    np.testing.assert_allclose(clip[4:], (arrays["Y_test"][5] + 1) / 2, atol=1e-6)
    training, validation = held_out(data, 0.2, None)
    assert (len(training), len(validation)) == (5, 1)
    with pytest.raises(InputError, match="must be"):
        read_data(tmp_path, ForecastSettings(frames=10))
    arrays["Y_test"][0, 0, 0, 0, 0] = np.nan
    np.savez(tmp_path / "dataset.npz", **arrays)
    with pytest.raises(InputError, match="1 values that are NaN"):
        read_data(tmp_path, ForecastSettings(frames=4))
    np.savez(tmp_path / "dataset.npz", X_train=arrays["X_train"])
    with pytest.raises(InputError, match="no array 'Y_train'"):
        read_data(tmp_path, ForecastSettings(frames=4))


def write_year(folder: Path, year: int, field: np.ndarray, *, version: int) -> None:
    path = folder / f"2m_temperature_{year}_5.625deg.nc"
    if version == 4:
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["t2m"] = field
        return
    from scipy.io import netcdf_file

    with netcdf_file(path, "w") as file:
        for name, size in zip(("time", "lat", "lon"), field.shape, strict=True):
            file.createDimension(name, size)
        file.createVariable("t2m", "f4", ("time", "lat", "lon"))[:] = field


@pytest.mark.parametrize("version", [3, 4])
def test_weather_is_standardised_by_the_training_years(tmp_path: Path, version: int) -> None:
    rng = np.random.default_rng(0)
    fields = {year: (rng.normal(280, 15, (30, 4, 8)) + year - 2010).astype(np.float32) for year in (2010, 2011, 2016, 2018)}
    for year, field in fields.items():
        write_year(tmp_path, year, field, version=version)
    settings = ForecastSettings(frames=12, years={"train": (2010, 2015), "val": (2016, 2016), "test": (2017, 2018)})
    data = read_data(tmp_path, settings)
    known = np.concatenate([fields[2010], fields[2011]])
    assert (data.layout, len(data.split("train")), len(data.split("test"))) == ("weatherbench", 60 - 23, 7)
    assert data.mean == pytest.approx(known.mean(), abs=1e-3)
    assert data.std == pytest.approx(known.std(), abs=1e-3)
    np.testing.assert_allclose(data.split("test").clip(3, None)[:, 0], (fields[2018][3:27] - data.mean) / data.std, atol=1e-5)
    other = read_data(tmp_path, settings, scale=(0.0, 2.0))
    np.testing.assert_allclose(other.split("val").clip(0, None)[:, 0] * 2, fields[2016][:24], rtol=1e-6)


def test_weather_of_two_grids_or_of_one_value(tmp_path: Path) -> None:
    write_year(tmp_path, 2010, np.full((8, 4, 8), 280, np.float32), version=3)
    with pytest.raises(InputError, match="one value everywhere"):
        read_data(tmp_path, ForecastSettings(frames=2))
    (tmp_path / "2m_temperature_2010_2.8125deg.nc").write_bytes(b"CDF")
    with pytest.raises(InputError, match="are of one year"):
        read_data(tmp_path, ForecastSettings(frames=2))


def test_bad_weather_is_said(tmp_path: Path) -> None:
    settings = ForecastSettings(frames=2)
    good = np.random.default_rng(0).normal(280, 15, (8, 4, 8)).astype(np.float32)
    write_year(tmp_path, 2010, good, version=3)
    write_year(tmp_path, 2012, good, version=3)
    with pytest.raises(InputError, match="lacks the year 2011"):
        read_data(tmp_path, settings)
    write_year(tmp_path, 2011, good[:, :3], version=3)
    with pytest.raises(InputError, match="no variable 'z'; it has t2m"):
        read_data(tmp_path, settings.model_copy(update={"variable": "z"}))
    with pytest.raises(InputError, match="grid"):
        read_data(tmp_path, settings)
    write_year(tmp_path, 2011, np.where(good > 300, np.nan, good), version=3)
    with pytest.raises(InputError, match="NaN"):
        read_data(tmp_path, settings)
    (tmp_path / "2m_temperature_2011_5.625deg.nc").write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="is no NetCDF"):
        read_data(tmp_path, settings)
    (tmp_path / "temperature.nc").write_bytes(b"CDF")
    with pytest.raises(InputError, match="year"):
        read_data(tmp_path, settings)


def test_videos_and_pictures_become_the_same_clips(tmp_path: Path) -> None:
    video = moving_square(14)
    write_pictures(tmp_path / "pictures" / "a", video)
    settings = ForecastSettings(frames=3, stride=2, hop=2, size=(32, 32))
    pictures = read_data(tmp_path / "pictures", settings).split("train")
    assert pictures.shape == (6, 1, 32, 32)
    assert len(pictures) == 2
    clip = pictures.clip(1, None)
    columns = np.arange(32) + 0.5
    places = [(frame[0].sum(axis=0) * columns).sum() / frame.sum() for frame in clip]
    np.testing.assert_allclose(np.diff(places), 2, atol=0.05)  # two frames of two pixels, at half the size
    assert places[0] == pytest.approx((2 * 2 + 10) / 2, abs=0.05)
    write_video(tmp_path / "films" / "a.mp4", video)
    films = read_data(tmp_path / "films", settings).split("train")
    assert np.abs(films.clip(1, None) - clip).mean() < 0.02
    (tmp_path / "films" / "b.mp4").write_bytes(b"no film at all")
    with pytest.raises(InputError, match=r"b\.mp4: does not decode"):
        read_data(tmp_path / "films", settings)
    with pytest.raises(InputError, match="takes 39 frames"):
        read_data(tmp_path / "pictures", ForecastSettings(frames=10, stride=2))


def test_pictures_are_in_order_and_of_one_size(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "a", moving_square(12))
    assert [path.stem for path in list_pictures(folder)] == [f"frame_{number}" for number in range(12)]
    write_pictures(tmp_path / "b", moving_square(1, 48))
    (tmp_path / "b" / "frame_0.png").rename(folder / "frame_12.png")
    with pytest.raises(InputError, match="48 x 48"):
        list(stream_frames(folder))
    (folder / "frame_12.png").write_bytes(b"")
    with pytest.raises(InputError, match="does not decode as a picture"):
        list(stream_frames(folder))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no pictures"):
        list(stream_frames(tmp_path / "empty"))
    with pytest.raises(InputError, match="no videos"):
        read_data(tmp_path / "empty", ForecastSettings())


def test_clips_start_at_every_hop_that_leaves_room() -> None:
    assert clip_starts([10, 3, 7], 3, 2, 2) == [(0, 0), (0, 2), (0, 4), (2, 0), (2, 2)]
    with pytest.raises(InputError, match="takes 21 frames"):
        clip_starts([20], 11, 2, 1)


def test_what_data_are_is_found_out(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 8, 1, 16, 16)))
    assert find_layout(tmp_path / "a.npy") == "clips"
    assert find_layout("drawn") == "moving_mnist"
    (tmp_path / "a.txt").write_text("")
    with pytest.raises(InputError, match="no data set"):
        find_layout(tmp_path / "a.txt")
    with pytest.raises(InputError, match="no such file"):
        read_data(tmp_path / "absent.npz", ForecastSettings(layout="taxibj"))
    (tmp_path / "broken.npz").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="cannot be read"):
        find_layout(tmp_path / "broken.npz")
    np.save(tmp_path / "objects.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError, match="cannot be read"):
        read_data(tmp_path / "objects.npy", ForecastSettings())


# Recipes, training


@pytest.mark.parametrize("name", [name for name in list_recipes() if name.startswith("predformer")])
def test_recipes_build_their_models(name: str) -> None:
    from vsuite.core import create_model

    settings = load_recipe(name)
    assert settings.task == "forecast"
    model = create_model(settings.model, **settings.options)
    if name == "predformer_digits":
        assert sum(p.numel() for p in model.parameters()) < 1_000_000
    else:
        assert model.num_frames == settings.forecast.frames
        assert settings.training.decay_norms_and_biases
        assert not settings.options


def test_a_run_leaves_what_prediction_needs(run_folder: Path) -> None:
    from vsuite.core.weights import read_metadata

    note = Note.model_validate(read_metadata(run_folder / "checkpoints" / "best.safetensors")["video_pose"])
    assert (note.frames, note.frame, note.layout) == (4, (1, 64, 64), "moving_mnist")
    assert (run_folder / "report.html").is_file()
    assert list((run_folder / "pictures").rglob("*.png"))
    with pytest.raises(InputError, match="holds a run already"):
        trained(run_folder.parent, "drawn")


def test_some_steps_learn(digits_file: Path, tmp_path: Path) -> None:
    settings = resolve_settings(data=str(digits_file), recipe=recipe(tmp_path))
    task, about = make_task(settings)
    assert about.startswith("moving_mnist: 4 frames of 1 x 64 x 64")
    torch.manual_seed(0)
    model = task.build_model()
    optimiser = torch.optim.AdamW(model.parameters(), 5e-3)
    samples = [task.training_data().sample(i, np.random.default_rng(i)) for i in range(4)]
    batch = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    losses = []
    for _ in range(40):
        loss = task.loss(model, batch)["mse"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_sizes_that_do_not_fit_are_said_before_training(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((6, 8, 1, 24, 24)))
    with pytest.raises(InputError, match="multiples of 16"):
        trained(tmp_path, tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.random.default_rng(0).random((1, 8, 1, 32, 32)))
    with pytest.raises(InputError, match="too few to train on"):
        trained(tmp_path, tmp_path / "a.npy")
    with pytest.raises(InputError, match="needs one for forecast"):
        trained(tmp_path, tmp_path / "a.npy", model="videopose3d_t243", options={})


# Prediction


def test_predictions_are_the_models_and_more_frames_feed_it_back(predictor: Predictor) -> None:
    frames = np.random.default_rng(0).random((6, 64, 64)).astype(np.float32)
    found = predictor.predict(frames, 10)
    assert found.shape == (10, 1, 64, 64)
    with torch.no_grad():
        first = predictor.model(torch.from_numpy(frames[None, -4:, None]))
        second = predictor.model(first)
    np.testing.assert_allclose(found[:8], torch.cat([first, second], 1)[0], atol=1e-5)
    as_bytes = (frames * 255).round().astype(np.uint8)
    np.testing.assert_allclose(predictor.predict(as_bytes), predictor.predict(as_bytes / np.float32(255)), atol=1e-6)


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((3, 64, 64)), "has 3 frames; this model observes 4"),
        (np.zeros((4, 1, 32, 64)), "1 x 64 x 64, channels first, for this model; got 1 x 32 x 64"),
        (np.zeros((4, 3, 64, 64)), "got 3 x 64 x 64"),
        (np.full((4, 64, 64), np.nan), "NaN"),
        (np.zeros((64, 64)), "must be"),
        (np.full((4, 64, 64), 255.0), r"must be bytes, or lie in \[0, 1\]"),
        (np.array([["a"]]), "must be"),
        (np.zeros((4, 64, 64), bool), "numbers"),
    ],
)
def test_frames_that_cannot_be_used_are_said(predictor: Predictor, frames: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        predictor.predict(frames)


def test_files_of_all_kinds_are_predicted_and_a_bad_one_does_not_stop_them(predictor: Predictor, tmp_path: Path) -> None:
    video = moving_square(12)
    inputs = tmp_path / "inputs"
    write_video(inputs / "film.mp4", video)
    write_pictures(inputs / "pictures", video)
    np.save(inputs / "array.npy", video[..., 0])
    np.save(inputs / "nan.npy", np.full((8, 64, 64), np.nan))
    np.save(inputs / "small.npy", np.zeros((8, 32, 32)))
    write_video(inputs / "short.mp4", video[:3])
    (inputs / "bad.mp4").write_bytes(b"\0" * 100)
    summary = predict_files(predictor, [inputs], tmp_path / "out", num_frames=5, start=2)
    assert len(summary.lines) == 3
    assert all("mean squared error" in line for line in summary.lines)
    for part in ("nan.npy: holds 32768 values", "small.npy: frames must be 1 x 64 x 64", "short.mp4", "bad.mp4: does not decode"):
        assert sum(part in line for line in summary.failed) == 1, part
    found = {name: np.load(tmp_path / "out" / f"{name}.npy") for name in ("film", "pictures", "array")}
    assert all(frames.shape == (5, 1, 64, 64) for frames in found.values())
    np.testing.assert_allclose(found["pictures"], found["array"], atol=1e-5)
    np.testing.assert_allclose(found["array"], predictor.predict(video[2:6, ..., 0], 5), atol=1e-5)
    assert {path.suffix for path in (tmp_path / "out").iterdir()} == {".npy", ".png", ".gif"}
    with pytest.raises(InputError, match="exists; --overwrite"):
        predict_files(predictor, [inputs / "array.npy"], tmp_path / "out")
    predict_files(predictor, [inputs / "array.npy"], tmp_path / "out", overwrite=True)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "array.npy"), predictor.predict(video[..., 0]), atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": ["absent.mp4"]}, "no such file"),
        ({"num_frames": 0}, "1 or more"),
        ({"start": -1}, "0 or more"),
        ({"inputs": ["a.npy", "other/a.npy"]}, "two inputs are called 'a'"),
        ({"out": "a.npy"}, "is a file"),
    ],
)
def test_what_was_asked_is_checked_before_anything_is_computed(
    predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("other").mkdir()
    for name in ("a.npy", "other/a.npy"):
        np.save(name, np.zeros((4, 64, 64)))
    given = {"inputs": ["a.npy"], "out": "out"} | changes
    with pytest.raises(InputError, match=message):
        predict_files(predictor, given.pop("inputs"), given.pop("out"), **given)
    assert not Path("out").exists()


def test_a_stride_takes_every_second_frame(tmp_path: Path) -> None:
    video = moving_square(17)
    write_pictures(tmp_path / "data" / "a", video)
    forecast = {"frames": 4, "stride": 2, "size": [32, 32], "colours": "bgr"}
    predictor = Predictor(trained(tmp_path, tmp_path / "data", forecast=forecast), device="cpu")
    assert predictor.note.frame == (3, 32, 32)
    predict_files(predictor, [tmp_path / "data" / "a"], tmp_path / "out")
    import cv2

    small = np.stack([cv2.resize(frame, (32, 32), interpolation=cv2.INTER_AREA) for frame in video[10:17:2]]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(np.load(tmp_path / "out" / "a.npy"), predictor.predict(small), atol=1e-5)


# Evaluation and export


def test_evaluation_gives_openstls_figures_and_those_of_repeating_the_last_frame(
    run_folder: Path, predictor: Predictor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    clips = rng.random((11, 8, 1, 64, 64)).astype(np.float32)
    np.save(tmp_path / "clips.npy", clips)
    found = evaluate(run_folder, tmp_path / "clips.npy", tmp_path / "out", device="cpu")
    predicted = np.stack([predictor.predict(clip[:4]) for clip in clips])
    for name, guess in (("model", predicted), ("last frame repeated", clips[:, 3:4].repeat(4, 1)), ("black frames", 0 * predicted)):
        assert found.rows[name] == pytest.approx(openstl_metrics(guess, clips[:, 4:]), rel=1e-4)
    assert found.frames[2]["mse"] == pytest.approx(openstl_metrics(predicted[:, 2:3], clips[:, 6:7])["mse"], rel=1e-4)
    written = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert written["figures"]["model"]["ssim_range1"] == pytest.approx(found.rows["model"]["ssim_range1"])
    assert len((tmp_path / "out" / "frames.csv").read_text().splitlines()) == 5
    assert len(list((tmp_path / "out").glob("clip_*.png"))) == len(list((tmp_path / "out").glob("clip_*.gif"))) == 4
    assert "range 2 of OpenSTL" in capsys.readouterr().out
    assert evaluate(run_folder, tmp_path / "clips.npy", tmp_path / "out", most=2, device="cpu").clips == 2
    np.save(tmp_path / "clips.npy", clips[..., :32, :32])
    with pytest.raises(InputError, match="its clips are"):
        evaluate(run_folder, tmp_path / "clips.npy", tmp_path / "out", device="cpu")
    np.save(tmp_path / "clips.npy", clips)
    with pytest.raises(InputError, match="no split 'val'"):
        evaluate(run_folder, tmp_path / "clips.npy", tmp_path / "out", split="val", device="cpu")


def test_weather_is_judged_in_its_own_unit(tmp_path: Path) -> None:
    for year in (2010, 2016, 2017):
        write_year(tmp_path, year, np.random.default_rng(year).normal(280, 15, (12, 16, 32)).astype(np.float32), version=3)
    forecast = {"frames": 4, "years": {"train": (2010, 2010), "val": (2016, 2016), "test": (2017, 2017)}}
    run = trained(tmp_path, tmp_path, forecast=forecast, validation={"pictures": 0})
    found = evaluate(run, tmp_path, tmp_path / "out", device="cpu")
    assert list(found.rows) == ["model", "last frame repeated"]
    assert list(found.definitions) == ["mse", "mae", "rmse"]
    assert found.rows["last frame repeated"]["rmse"] == pytest.approx(15 * 2**0.5, rel=0.05)


def test_figures_of_batches_are_those_of_the_whole() -> None:
    note = Note(layout="clips", frames=3, channels=1, height=8, width=8)
    truth, guess = np.random.default_rng(0).random((2, 5, 3, 1, 8, 8))
    figures = Figures(note)
    for rows in (slice(0, 2), slice(2, 5)):
        figures.add(guess[rows], truth[rows])
    assert figures.means() == pytest.approx(openstl_metrics(guess, truth))
    tiny = Figures(note.model_copy(update={"height": 4}))
    tiny.add(guess[..., :4, :], truth[..., :4, :])
    assert set(tiny.means()) == {"mse", "mae", "rmse", "psnr"}


@pytest.mark.slow
def test_onnx_gives_what_the_model_gives(run_folder: Path, predictor: Predictor, tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from vsuite.video_pose.forecast.export import export_onnx

    assert "4 frames of 1 x 64 x 64" in export_onnx(run_folder, tmp_path / "a.onnx")
    frames = np.random.default_rng(1).random((3, 4, 1, 64, 64)).astype(np.float32)
    (found,) = ort.InferenceSession(tmp_path / "a.onnx").run(None, {"frames": frames})
    np.testing.assert_allclose(found, predictor.predict_batch(frames), atol=1e-4)
    with pytest.raises(InputError, match=r"\.onnx"):
        export_onnx(run_folder, tmp_path / "a.pt")


# The command line


def test_the_verbs_predict_and_evaluate(
    vsuite: Callable[..., tuple[int, str, str]], run_folder: Path, digits_file: Path, predictor: Predictor, tmp_path: Path
) -> None:
    video = moving_square(9)
    write_pictures(tmp_path / "square", video)
    asked = ["predict", tmp_path / "square", "--weights", run_folder, "--out", tmp_path / "out", "--device", "cpu"]
    code, out, err = vsuite(*asked, "--task", "forecast", "--frames", 3, "--start", 1)
    assert code == 0, err
    assert "square: 3 frames; mean squared error" in out
    np.testing.assert_allclose(np.load(tmp_path / "out" / "square.npy"), predictor.predict(video[1:5, ..., 0], 3), atol=1e-5)
    code, _, err = vsuite(*asked)
    assert (code, err.count("\n")) == (2, 1)
    assert "--overwrite replaces it" in err
    asked = ["evaluate", "--weights", run_folder, "--data", digits_file, "--out", tmp_path / "judged", "--device", "cpu", "--most", 3]
    code, out, err = vsuite(*asked)
    assert code == 0, err
    assert "3 clips, 4 frames predicted from 4" in out
    assert "last frame repeated" in out
    wanted = read_data(digits_file, ForecastSettings(frames=4, digits=1)).split("test")
    later = np.stack([wanted.clip(number, None)[4:] for number in (0, 66, 133)])
    figures = json.loads((tmp_path / "judged" / "metrics.json").read_text())["figures"]
    assert figures["black frames"]["mse"] == pytest.approx((later**2).sum() / 12, rel=1e-5), "one digit a clip, as it has learnt"
    code, _, err = vsuite(*asked, "--split", "vla")
    assert (code, err.count("\n")) == (2, 1)
    assert "no split 'vla'; it has train, val, test" in err


def test_bad_videos_are_one_line_and_code_2(vsuite: Callable[..., tuple[int, str, str]], run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    write_video(tmp_path / "short.mp4", moving_square(2))
    np.save(tmp_path / "nan.npy", np.full((4, 64, 64), np.nan))
    for name, message in (("bad.mp4", "does not decode as a video"), ("short.mp4", "observes 4"), ("nan.npy", "NaN")):
        code, _, err = vsuite("predict", tmp_path / name, "--weights", run_folder, "--out", tmp_path / "out", "--device", "cpu")
        assert code == 2
        assert message in err
        assert len(err.strip().splitlines()) == 1, err


@pytest.mark.slow
def test_a_broken_video_is_one_line_in_a_process_of_its_own(run_folder: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    (tmp_path / "bad.mp4").write_bytes(np.random.default_rng(0).bytes(3000))
    code = "from vsuite.video_pose.cli import main; main()"
    arguments = ["predict", tmp_path / "bad.mp4", "--weights", run_folder, "--out", tmp_path / "out"]
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"error: {tmp_path / 'bad.mp4'}: does not decode as a video"], "FFmpeg keeps quiet"
