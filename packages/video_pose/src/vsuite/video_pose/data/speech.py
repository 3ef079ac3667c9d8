"""Speech: WAV files, log-mel features as Kaldi computes them, and the layout of Google's Speech Commands.

A clip of Speech Commands lasts one second at 16 kHz: 98 frames of 25 ms every 10 ms, padded with zeros to 128 frames of 128
mel bins. `FeatureStream` gives the same frames while the samples still come in.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.io.wavfile

from vsuite.core.errors import InputError, unknown

SAMPLE_RATE = 16_000
NUM_FRAMES = 128
NUM_MEL_BINS = 128
# Of the log-mel values of Speech Commands, as published with LMUFormer's recipe, which divides by twice the deviation.
MEAN, STANDARD_DEVIATION = -6.845978, 5.5654526

FRAME_SECONDS, SHIFT_SECONDS = 0.025, 0.010
LOWEST_FREQUENCY = 20.0
PREEMPHASIS = 0.97
FLOOR = float(np.finfo(np.float32).eps)  # of a mel bin's energy before the logarithm

# Version 2 of the data set, in alphabetical order: the index in this list is the class.
# fmt: off
KEYWORDS = [
    "backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go", "happy", "house",
    "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven", "sheila", "six", "stop", "three", "tree",
    "two", "up", "visual", "wow", "yes", "zero",
]
# fmt: on
LISTS = {"validation": "validation_list.txt", "test": "testing_list.txt"}
SPLITS = ("train", *LISTS)


@dataclass(frozen=True)
class Clip:
    """One recording of Speech Commands: where it is, and the index of its word."""

    path: Path
    label: int


def read_wav(path: str | Path) -> tuple[np.ndarray, int]:
    """The samples of a WAV file.

    Returns:
        Samples (n,) in float32, in [-1, 1] (the mean of the channels where there are several), and their rate in Hz.

    Raises:
        InputError: for a missing, damaged, compressed or empty file, and for NaN or infinite samples.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", scipy.io.wavfile.WavFileWarning)  # chunks of other programs; a short file is found below
            rate, samples = scipy.io.wavfile.read(path)
    except Exception as error:  # the reader raises many kinds for damaged files
        raise InputError(f"{path}: cannot be read as WAV: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    if samples.size == 0 or rate <= 0:
        raise InputError(f"{path}: holds no samples")
    if samples.dtype == np.uint8:
        waveform = (samples.astype(np.float32) - 128) / 128
    elif samples.dtype.kind == "i":  # 24-bit samples come left-aligned in 32 bits
        waveform = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    else:
        waveform = samples.astype(np.float32)
    if not np.isfinite(waveform).all():
        raise InputError(f"{path}: holds NaN or infinite samples")
    return (waveform if waveform.ndim == 1 else waveform.mean(1)), rate


def log_mel(waveform: np.ndarray, sample_rate: int = SAMPLE_RATE, *, num_mel_bins: int = NUM_MEL_BINS) -> np.ndarray:
    """Log-mel filterbank energies as Kaldi's `fbank` computes them, without dither and energy, with a Hann window.

    Args:
        waveform: (n,), in [-1, 1].
        sample_rate: in Hz.
        num_mel_bins: triangles between 20 Hz and half the sample rate.

    Returns:
        (1 + (n - 25 ms) // 10 ms, num_mel_bins) float32; no frames if there are fewer samples than 25 ms hold.

    Raises:
        InputError: for another shape, and for NaN or infinite samples.
    """
    waveform = np.asarray(waveform, np.float32)
    if waveform.ndim != 1:
        raise InputError(f"a waveform is one row of samples; got an array of {waveform.shape}")
    if not np.isfinite(waveform).all():
        raise InputError("the waveform holds NaN or infinite samples")
    length, shift = _frame_sizes(sample_rate)
    if len(waveform) < length:
        return np.zeros((0, num_mel_bins), np.float32)
    # The mean of the whole clip, which the recipe removes first, falls out with the mean of each frame.
    frames = np.lib.stride_tricks.sliding_window_view(waveform, length)[::shift].astype(np.float64)
    frames = frames - frames.mean(1, keepdims=True)
    before = np.concatenate([frames[:, :1], frames[:, :-1]], 1)
    frames = (frames - PREEMPHASIS * before) * np.hanning(length)
    size = 1 << (length - 1).bit_length()
    power = np.abs(scipy.fft.rfft(frames, size)) ** 2
    return np.log(np.maximum(power @ mel_filters(sample_rate, size, num_mel_bins), FLOOR)).astype(np.float32)


@functools.lru_cache(maxsize=8)
def mel_filters(sample_rate: int, size: int, num_mel_bins: int) -> np.ndarray:
    """Triangles that are equally wide on the mel scale, 1127 log(1 + f / 700): (size // 2 + 1, num_mel_bins)."""
    if num_mel_bins < 1:
        raise InputError(f"num_mel_bins must be 1 or more; got {num_mel_bins}")
    edges = np.linspace(_mel(LOWEST_FREQUENCY), _mel(sample_rate / 2), num_mel_bins + 2)
    places = _mel(np.arange(size // 2 + 1) * sample_rate / size)[:, None]
    rising = (places - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - places) / (edges[2:] - edges[1:-1])
    filters = np.maximum(0, np.minimum(rising, falling))
    filters[-1] = 0  # Kaldi leaves out the bin at half the sample rate
    return filters


def mfcc(features: np.ndarray, num_coefficients: int = 40) -> np.ndarray:
    """Cepstral coefficients of log-mel features (T, bins) -> (T, num_coefficients): an orthonormal cosine transform.

    The paper uses log-mel features themselves; this is for comparison with other systems.
    """
    if not 1 <= num_coefficients <= features.shape[-1]:
        raise InputError(f"num_coefficients must lie between 1 and the {features.shape[-1]} mel bins; got {num_coefficients}")
    return scipy.fft.dct(features, norm="ortho", axis=-1)[..., :num_coefficients].astype(np.float32)


def fit_length(features: np.ndarray, num_frames: int = NUM_FRAMES) -> np.ndarray:
    """Features (T, bins) cut, or padded with zeros at the end, to (num_frames, bins)."""
    missing = max(0, num_frames - len(features))
    return np.pad(features[:num_frames], ((0, missing), (0, 0)))


def normalise(features: np.ndarray) -> np.ndarray:
    """Features as the published network takes them: the recipe does this last, after padding and masking."""
    return ((features - MEAN) / (2 * STANDARD_DEVIATION)).astype(np.float32)


def load_clip(path: str | Path) -> np.ndarray:
    """A WAV file as the published network takes it: (128, 128) float32, frames and mel bins.

    Raises:
        InputError: for an unreadable file, another rate than 16 kHz, and fewer samples than one frame.
    """
    waveform, rate = read_wav(path)
    if rate != SAMPLE_RATE:
        raise InputError(f"{path}: is sampled at {rate} Hz; the network takes {SAMPLE_RATE} Hz (resample it first)")
    features = log_mel(waveform)
    if not len(features):
        raise InputError(f"{path}: lasts {1000 * len(waveform) / rate:.0f} ms; one frame takes {1000 * FRAME_SECONDS:.0f} ms")
    return normalise(fit_length(features))


class FeatureStream:
    """The frames of `log_mel`, one by one, while samples come in; it keeps less than one frame of them.

    Attributes:
        delay: seconds between a frame's first sample and the frame.
    """

    delay = FRAME_SECONDS

    def __init__(self, sample_rate: int = SAMPLE_RATE, *, num_mel_bins: int = NUM_MEL_BINS) -> None:
        self.sample_rate = sample_rate
        self.num_mel_bins = num_mel_bins
        self._length, self._shift = _frame_sizes(sample_rate)
        self.reset()

    def reset(self) -> None:
        """Starts a new recording."""
        self._samples = np.zeros(0, np.float32)

    def push(self, samples: np.ndarray) -> np.ndarray:
        """Any number of samples (n,) in [-1, 1] -> the frames that are complete now (T, num_mel_bins), T of 0 or more."""
        self._samples = np.concatenate([self._samples, np.asarray(samples, np.float32)])
        frames = log_mel(self._samples, self.sample_rate, num_mel_bins=self.num_mel_bins)
        self._samples = self._samples[len(frames) * self._shift :]
        return frames


def read_speech_commands(root: str | Path, split: str, *, words: list[str] | None = None) -> list[Clip]:
    """The recordings of one split of Speech Commands, by its official lists.

    Args:
        root: a folder with a folder of WAV files for each word, `validation_list.txt` and `testing_list.txt`.
        split: "train" (all that is in neither list), "validation" or "test".
        words: the classes in order; None is the 35 words of version 2. Folders of other words are left out.

    Returns:
        Clips sorted by word and name.

    Raises:
        InputError: for a missing folder or list, a list that names files that are not there, one file in both lists, and
            words without any recording.
    """
    root, words = Path(root), words or KEYWORDS
    if split not in SPLITS:
        raise unknown("split of Speech Commands", split, SPLITS)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    lists = {name: _read_list(root / file) for name, file in LISTS.items()}
    both = lists["validation"] & lists["test"]
    if both:
        raise InputError(f"{root}: {min(both)} is both in {LISTS['validation']} and in {LISTS['test']}")
    found = {name: words.index(name.split("/")[0]) for name in _recordings(root, words)}
    absent = sorted(set(words) - {words[label] for label in found.values()})
    if absent:
        raise InputError(f"{root}: has no WAV files of the words {', '.join(absent[:5])}{', ...' if len(absent) > 5 else ''}")
    for name, listed in lists.items():
        gone = sorted(listed_name for listed_name in listed if listed_name.split("/")[0] in words and listed_name not in found)
        if gone:
            raise InputError(f"{root / LISTS[name]}: names {len(gone)} files that are not there, such as {gone[0]}")
    chosen = lists[split] & set(found) if split in lists else set(found) - lists["validation"] - lists["test"]
    return [Clip(root / name, found[name]) for name in sorted(chosen)]


def _recordings(root: Path, words: list[str]) -> Iterator[str]:
    for word in words:
        yield from (f"{word}/{file.name}" for file in (root / word).glob("*.wav"))


def _read_list(path: Path) -> set[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; Speech Commands comes with it")
    try:
        return {line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()}
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not a text file") from error


def _frame_sizes(sample_rate: int) -> tuple[int, int]:
    """Samples of a frame, and from one frame to the next."""
    length, shift = int(sample_rate * FRAME_SECONDS), int(sample_rate * SHIFT_SECONDS)
    if shift < 1 or sample_rate / 2 <= LOWEST_FREQUENCY:
        raise InputError(f"the sample rate must be 100 Hz or more; got {sample_rate}")
    return length, shift


def _mel(frequency: np.ndarray | float) -> np.ndarray:
    return 1127 * np.log1p(np.asarray(frequency) / 700)
