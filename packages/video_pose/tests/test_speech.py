"""Speech: WAV files, log-mel features, the layout of Speech Commands."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.io.wavfile
from hypothesis import given
from hypothesis import strategies as st

from vsuite.core import InputError
from vsuite.video_pose.data import speech


def noise(seconds: float, rate: int = 16_000, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-0.5, 0.5, int(seconds * rate)).astype(np.float32)


def write(path: Path, samples: np.ndarray, rate: int = 16_000) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.wavfile.write(path, rate, samples)
    return path


def slow_log_mel(waveform: np.ndarray, rate: int, bins: int) -> np.ndarray:
    """Kaldi's recipe, frame by frame and sum by sum."""
    length, shift = int(0.025 * rate), int(0.010 * rate)
    size = 2 ** int(np.ceil(np.log2(length)))
    waveform = waveform.astype(np.float64) - waveform.astype(np.float64).mean()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / (length - 1))

    def mel(f: float) -> float:
        return 1127 * np.log(1 + f / 700)

    low, high = mel(20), mel(rate / 2)
    width = (high - low) / (bins + 1)
    rows = []
    for start in range(0, len(waveform) - length + 1, shift):
        frame = waveform[start : start + length]
        frame = frame - frame.mean()
        frame = np.array([frame[i] - 0.97 * frame[max(0, i - 1)] for i in range(length)]) * window
        power = np.abs(np.fft.fft(frame, size)) ** 2
        row = []
        for b in range(bins):
            left, centre, right = low + b * width, low + (b + 1) * width, low + (b + 2) * width
            energy = 0.0
            for k in range(size // 2):
                place = mel(k * rate / size)
                energy += max(0.0, min((place - left) / (centre - left), (right - place) / (right - centre))) * power[k]
            row.append(np.log(max(energy, 1.1920928955078125e-07)))
        rows.append(row)
    return np.array(rows)


@pytest.mark.parametrize(("rate", "bins"), [(16_000, 128), (8_000, 23)])
def test_log_mel_is_kaldis(rate: int, bins: int) -> None:
    waveform = noise(0.05, rate) + 0.1
    got = speech.log_mel(waveform, rate, num_mel_bins=bins)
    assert got.shape == (3, bins)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, slow_log_mel(waveform, rate, bins), rtol=1e-5, atol=1e-4)


def test_a_second_has_98_frames_and_a_tone_its_own_bin() -> None:
    tone = np.sin(2 * np.pi * 1000 * np.arange(16_000) / 16_000).astype(np.float32)
    features = speech.log_mel(tone)
    assert features.shape == (98, 128)
    edges = np.linspace(1127 * np.log1p(20 / 700), 1127 * np.log1p(8000 / 700), 130)
    nearest = np.abs(edges[1:-1] - 1127 * np.log1p(1000 / 700)).argmin()
    assert set(features.argmax(1)) == {nearest}
    np.testing.assert_allclose(speech.log_mel(0.1 * tone)[:, nearest] - features[:, nearest], 2 * np.log(0.1), atol=1e-4)
    silence = speech.log_mel(np.zeros(16_000, np.float32))
    np.testing.assert_allclose(silence, np.log(np.finfo(np.float32).eps))


def test_cut_pad_normalise() -> None:
    features = speech.log_mel(noise(1.0))
    padded = speech.fit_length(features)
    assert padded.shape == (128, 128)
    assert np.array_equal(padded[:98], features)
    assert not padded[98:].any()
    assert np.array_equal(speech.fit_length(features, 50), features[:50])
    np.testing.assert_allclose(speech.normalise(padded)[127], 6.845978 / (2 * 5.5654526))
    np.testing.assert_allclose(speech.mfcc(features, 128) @ speech.mfcc(features, 128).T, features @ features.T, rtol=1e-3)
    with pytest.raises(InputError, match="between 1 and the 128 mel bins"):
        speech.mfcc(features, 129)


@given(st.lists(st.integers(0, 2000), min_size=1, max_size=12))
def test_frames_of_a_stream_are_those_of_the_clip(sizes: list[int]) -> None:
    stream = speech.FeatureStream()
    waveform = noise(2.0)[: sum(sizes)]
    parts = [stream.push(part) for part in np.split(waveform, np.cumsum(sizes)[:-1])]
    np.testing.assert_allclose(np.concatenate(parts), speech.log_mel(waveform), atol=1e-4)
    assert len(stream._samples) < 400


@pytest.mark.parametrize("dtype", ["int16", "int32", "uint8", "float32"])
def test_wav_files(tmp_path: Path, dtype: str) -> None:
    waveform = noise(0.1)
    scale = {"int16": 2**15, "int32": 2**31, "uint8": 128, "float32": 1}[dtype]
    samples = (waveform * scale + (128 if dtype == "uint8" else 0)).astype(dtype)
    got, rate = speech.read_wav(write(tmp_path / "a.wav", samples))
    assert rate == 16_000
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, waveform, atol=1.01 / min(scale, 2**15) if scale > 1 else 0)
    stereo, _ = speech.read_wav(write(tmp_path / "b.wav", np.stack([samples, samples], 1)))
    np.testing.assert_allclose(stereo, got, atol=1e-6)


def test_bad_wav_files(tmp_path: Path) -> None:
    (tmp_path / "text.wav").write_text("not sound at all")
    write(tmp_path / "empty.wav", np.zeros(0, np.int16))
    write(tmp_path / "nan.wav", np.full(800, np.nan, np.float32))
    write(tmp_path / "rate.wav", noise(0.5, 8_000), 8_000)
    write(tmp_path / "short.wav", noise(0.02))
    for name, problem in {
        "none.wav": "no such file",
        "text.wav": "cannot be read as WAV",
        "empty.wav": "holds no samples",
        "nan.wav": "NaN or infinite",
        "rate.wav": "8000 Hz; the network takes 16000 Hz",
        "short.wav": "lasts 20 ms",
    }.items():
        with pytest.raises(InputError, match=problem) as error:
            speech.load_clip(tmp_path / name)
        assert name in str(error.value)
        assert "\n" not in str(error.value)
    with pytest.raises(InputError, match="one row of samples"):
        speech.log_mel(np.zeros((2, 400)))


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    for word in ("yes", "no"):
        for i in range(4):
            write(tmp_path / word / f"{i}_nohash_0.wav", (noise(0.1, seed=i) * 2**15).astype(np.int16))
    write(tmp_path / "_background_noise_" / "tap.wav", noise(0.1))
    (tmp_path / "validation_list.txt").write_text("yes/0_nohash_0.wav\nno/0_nohash_0.wav\n")
    (tmp_path / "testing_list.txt").write_text("yes/1_nohash_0.wav\n")
    return tmp_path


def test_speech_commands(commands: Path) -> None:
    splits = {split: speech.read_speech_commands(commands, split, words=["no", "yes"]) for split in ("train", "validation", "test")}
    names = {split: [f"{clip.path.parent.name}/{clip.path.name[0]}" for clip in clips] for split, clips in splits.items()}
    assert names == {"train": ["no/1", "no/2", "no/3", "yes/2", "yes/3"], "validation": ["no/0", "yes/0"], "test": ["yes/1"]}
    assert [clip.label for clip in splits["train"]] == [0, 0, 0, 1, 1]
    assert speech.load_clip(splits["test"][0].path).shape == (128, 128)
    assert len(set(speech.KEYWORDS)) == 35
    assert sorted(speech.KEYWORDS) == speech.KEYWORDS


def test_bad_speech_commands(commands: Path) -> None:
    words = ["no", "yes"]
    with pytest.raises(InputError, match="did you mean 'test'"):
        speech.read_speech_commands(commands, "tests", words=words)
    with pytest.raises(InputError, match="no such folder"):
        speech.read_speech_commands(commands / "none", "test", words=words)
    with pytest.raises(InputError, match="no WAV files of the words backward"):
        speech.read_speech_commands(commands, "test")
    (commands / "testing_list.txt").write_text("yes/9_nohash_0.wav\n")
    with pytest.raises(InputError, match=r"testing_list\.txt: names 1 files that are not there, such as yes/9"):
        speech.read_speech_commands(commands, "test", words=words)
    (commands / "testing_list.txt").write_text("yes/0_nohash_0.wav\n")
    with pytest.raises(InputError, match="both in"):
        speech.read_speech_commands(commands, "test", words=words)
    (commands / "testing_list.txt").unlink()
    with pytest.raises(InputError, match=r"testing_list\.txt: no such file"):
        speech.read_speech_commands(commands, "test", words=words)
