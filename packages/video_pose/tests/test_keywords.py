"""Spoken words as a user meets them: tones and chirps stand for words."""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io.wavfile
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from vsuite.core import InputError, create_model, save_weights
from vsuite.core.training.settings import TrainingSettings
from vsuite.video_pose.data.speech import SAMPLE_RATE, load_clip
from vsuite.video_pose.keywords.data import WordSamples, features_of, find_words, masked, mixed, read_recordings, read_word, windows_of
from vsuite.video_pose.keywords.evaluate import evaluate
from vsuite.video_pose.keywords.export import export_onnx
from vsuite.video_pose.keywords.predict import Predictor, predict_files, stream_recording
from vsuite.video_pose.keywords.settings import KeywordSettings, keywords_steps
from vsuite.video_pose.keywords.task import Note
from vsuite.video_pose.notes import NOTE
from vsuite.video_pose.settings import load_recipe

WORDS = ["falling", "high", "low"]
SMALL = KeywordSettings(frames=40, mel_bins=16, mixup=0.0, mask_frequency=2, mask_time=4, noise=0.02, shift=3)
TINY = {"embed_dim": 16, "theta": 40.0}


def word(name: str, seconds: float, rng: np.random.Generator) -> NDArray[np.float32]:
    time = np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = {"high": 2500.0, "low": 300.0}.get(name)
    phase = 2 * np.pi * (pitch * time if pitch else 3000 * time - 1400 * time**2 / seconds)
    return (0.3 * np.sin(phase + rng.uniform(0, 6)) + rng.normal(0, 0.01, len(time))).astype(np.float32)


def write_word(path: Path, name: str, rng: np.random.Generator, seconds: float = 0.4) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.wavfile.write(path, SAMPLE_RATE, (word(name, seconds, rng) * 32767).astype(np.int16))
    return path


def write_words(root: Path, each: int = 8) -> Path:
    rng = np.random.default_rng(0)
    for name in WORDS:
        for number in range(each):
            write_word(root / name / f"{number:08x}_nohash_0.wav", name, rng)
    (root / "_background_noise_").mkdir()
    return root


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return untrained(tmp_path_factory.mktemp("w") / "w.safetensors")


def untrained(path: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    network = create_model("lmuformer_speech", num_classes=3, in_channels=16, **(TINY | options))
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        if isinstance(module, torch.nn.Linear):
            torch.nn.init.normal_(module.weight, std=0.3)
    save_weights(network, path, metadata={NOTE: Note(words=WORDS, frames=40, mel_bins=16).model_dump()})
    return path


# --- the way of a user ---


def test_words_are_learnt_spotted_and_judged(tmp_path: Path, vsuite: Callable[..., tuple[int, str, str]]) -> None:
    data, out = write_words(tmp_path / "words"), tmp_path / "run"
    recipe = {
        "name": "tiny", "task": "keywords", "model": "lmuformer_speech", "options": TINY, "keywords": SMALL.model_dump(),
        "training": {"steps": 40, "batch_size": 6, "learning_rate": 5e-3, "validate_every": 40},
        "validation": {"fraction": 0.3},
    }  # fmt: skip
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(recipe))))
    code, printed, _ = vsuite("train", "--data", data, "--recipe", tmp_path / "tiny.yaml", "--out", out)
    assert code == 0
    assert "3 words: falling, high, low" in printed
    found = evaluate(out, data, tmp_path / "judged", stream=True, device="cpu")
    assert found["accuracy"] == 1.0
    assert found["stream"]["largest_difference_of_scores"] < 1e-4
    assert found["stream"]["accuracy_after"]["100%"] == 1.0
    assert json.loads((tmp_path / "judged" / "metrics.json").read_text()) == json.loads(json.dumps(found))
    said = write_word(tmp_path / "new" / "one.wav", "high", np.random.default_rng(9))
    code, printed, _ = vsuite("predict", said, "--weights", out, "--out", tmp_path / "said", "--stream", "--top", 2)
    assert (code, "high" in printed) == (0, True)
    content = json.loads((tmp_path / "said" / "keywords.json").read_text())
    assert content["recordings"][0]["word"] == "high"
    rows = list(csv.DictReader((tmp_path / "said" / content["recordings"][0]["stream"]).open()))
    assert len(rows) == 40
    assert rows[-1]["word"] == "high"
    assert float(rows[1]["seconds"]) - float(rows[0]["seconds"]) == pytest.approx(0.01)


# --- streams ---


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 3000), st.floats(0.05, 0.4))
def test_a_stream_ends_with_the_answer_whatever_comes_at_a_time(weights: Path, chunk: int, seconds: float) -> None:
    predictor = Predictor(weights, device="cpu")
    waveform = word("falling", seconds, np.random.default_rng(0))
    stream = predictor.stream()
    heard = [one for start in range(0, len(waveform), chunk) for one in stream.push(waveform[start : start + chunk])] + stream.finish()
    assert len(heard) == 40
    (wanted,) = predictor.predict(waveform)
    np.testing.assert_allclose(heard[-1].probabilities, wanted.probabilities, atol=1e-5)


def test_long_recordings_are_heard_clip_by_clip(weights: Path, tmp_path: Path) -> None:
    predictor = Predictor(weights, device="cpu")
    path = write_word(tmp_path / "x.wav", "high", np.random.default_rng(0), seconds=2.0)
    heard = predictor.predict(path)
    assert len(heard) == 9
    assert heard[-1].seconds == pytest.approx(2.0)
    assert max(b.seconds - a.seconds for a, b in itertools.pairwise(heard)) <= 0.415 / 2
    assert len(list(stream_recording(predictor, path))) == 198


def test_the_spiking_attention_does_not_stream(tmp_path: Path) -> None:
    path = untrained(tmp_path / "w.safetensors", form="spiking_attention")
    with pytest.raises(InputError, match="looks at later frames too and does not stream"):
        Predictor(path, device="cpu").stream()


# --- features and random changes ---


def test_features_are_those_of_the_published_network(tmp_path: Path) -> None:
    path = write_word(tmp_path / "x.wav", "low", np.random.default_rng(0), seconds=1.0)
    assert np.array_equal(features_of(read_word(path), KeywordSettings()), load_clip(path))
    ((start, features),) = windows_of(read_word(path), KeywordSettings())
    assert start == 0
    assert np.array_equal(features, load_clip(path))


def test_training_mixes_targets_as_it_mixes_sounds(tmp_path: Path) -> None:
    data = write_words(tmp_path / "words", each=3)
    clips = read_recordings(data, "train", words=WORDS, fraction=0.01)
    samples = WordSamples(clips, 3, SMALL.model_copy(update={"mixup": 1.0}))
    drawn = [samples.sample(i, np.random.default_rng(i)) for i in range(6)]
    assert all(float(one["target"].sum()) == pytest.approx(1, abs=1e-5) for one in drawn)
    assert any(float(one["target"].max()) < 0.9 for one in drawn)
    assert drawn[0]["features"].shape == (40, 16)
    one, two = np.arange(1, 6, dtype=np.float32), np.array([5, 7], np.float32)
    np.testing.assert_allclose(mixed(one, two, np.float32(1)), one - one.mean())
    np.testing.assert_allclose(mixed(one, two, np.float32(0)), [-1, 1, 0, 0, 0])


@given(st.integers(0, 10_000))
def test_masks_are_bands_no_wider_than_asked(seed: int) -> None:
    found = masked(np.ones((30, 20), np.float32), 10, 6, np.random.default_rng(seed))
    assert (found == 0).all(1).sum() <= 10
    assert (found == 0).all(0).sum() <= 6
    assert found.any()


def test_the_published_rate_falls_every_twentieth_of_the_run() -> None:
    chosen = TrainingSettings(epochs=200, learning_rate=2.5e-3)
    rates = [keywords_steps(step, 2000, chosen) for step in (0, 99, 100, 1999)]
    np.testing.assert_allclose(rates, [2.5e-3, 2.5e-3, 2.5e-3 * 0.85, 2.5e-3 * 0.85**19])
    assert load_recipe("lmuformer_speech").training.schedule == "keywords_steps"


def test_speakers_do_not_stand_on_both_sides(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in WORDS:
        for number in range(20):
            write_word(tmp_path / name / f"{number:08x}_nohash_{number % 3}.wav", name, rng, seconds=0.03)
    assert find_words(tmp_path) == WORDS
    sides = [read_recordings(tmp_path, split, words=WORDS, fraction=0.3) for split in ("train", "validation")]
    train, held_out = ({clip.path.stem.split("_")[0] for clip in side} for side in sides)
    assert len(sides[0]) + len(sides[1]) == 60
    assert not train & held_out


# --- what users give wrongly ---


def test_bad_recordings_are_one_line_each(weights: Path, tmp_path: Path, vsuite: Callable[..., tuple[int, str, str]]) -> None:
    rng = np.random.default_rng(0)
    good = write_word(tmp_path / "good.wav", "low", rng)
    (tmp_path / "text.wav").write_bytes(b"this is no recording")
    scipy.io.wavfile.write(tmp_path / "rate.wav", 8000, np.zeros(8000, np.int16))
    scipy.io.wavfile.write(tmp_path / "nan.wav", SAMPLE_RATE, np.full(8000, np.nan, np.float32))
    scipy.io.wavfile.write(tmp_path / "short.wav", SAMPLE_RATE, np.ones(50, np.int16))
    done = predict_files(Predictor(weights, device="cpu"), [tmp_path], tmp_path / "out")
    assert [line.split(":")[0] for line in done.lines] == [str(good)]
    problems = {Path(line.split(":")[0]).stem: line for line in done.failed}
    for name, match in {"text": "cannot be read as WAV", "rate": "8000 Hz", "nan": "NaN", "short": "25 ms"}.items():
        assert match in problems[name]
    code, _, error = vsuite("predict", tmp_path / "text.wav", "--weights", weights, "--out", tmp_path / "other")
    assert code == 2
    assert len(error.strip().splitlines()) == 1
    with pytest.raises(InputError, match="no such file"):
        predict_files(Predictor(weights, device="cpu"), [tmp_path / "none.wav"], tmp_path / "out")
    with pytest.raises(InputError, match="--overwrite"):
        predict_files(Predictor(weights, device="cpu"), [good], tmp_path / "out")


def test_recordings_of_one_name_and_patterns(weights: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for folder in ("a/low", "b/low"):
        write_word(tmp_path / folder / "1.wav", "low", rng)
    done = predict_files(Predictor(weights, device="cpu"), [str(tmp_path / "*" / "*" / "*.wav")], tmp_path / "out", stream=True)
    assert (len(done.lines), done.failed) == (2, [])
    written = [one["stream"] for one in json.loads((tmp_path / "out" / "keywords.json").read_text())["recordings"]]
    assert written == ["low_1_stream.csv", "low_1_stream_2.csv"]
    assert all((tmp_path / "out" / name).is_file() for name in written)


def test_long_recordings_take_the_memory_of_a_batch(weights: Path) -> None:
    predictor, sizes = Predictor(weights, device="cpu"), []
    waveform = np.random.default_rng(0).normal(0, 0.1, 16 * SAMPLE_RATE).astype(np.float32)
    model = predictor.model
    predictor.model = lambda features: sizes.append(len(features)) or model(features)
    heard = predictor.predict(waveform)
    assert max(sizes) <= 32 < sum(sizes) == len(heard)
    for bad in (waveform[:100], waveform[None], np.full(8000, np.nan, np.float32)):
        with pytest.raises(InputError, match=r"samples|NaN"):
            predictor.predict(bad)


def test_data_without_words_and_with_others(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="needs a folder of WAV files for each of two words"):
        find_words(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        write_word(tmp_path / name / "x.wav", "low", rng)
    with pytest.raises(InputError, match="has no recordings of falling, high, low, which the model knows"):
        evaluate(weights, tmp_path, tmp_path / "out", device="cpu")


def test_onnx(weights: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    assert "takes features (1, 40, 16)" in export_onnx(weights, tmp_path / "w.onnx")
