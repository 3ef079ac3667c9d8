"""Recordings of words, their features, and what training changes in them at random."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vsuite.core.errors import InputError
from vsuite.video_pose.data.speech import (
    FRAME_SECONDS,
    LISTS,
    SAMPLE_RATE,
    SHIFT_SECONDS,
    Clip,
    fit_length,
    log_mel,
    normalise,
    read_speech_commands,
    read_wav,
)
from vsuite.video_pose.keywords.settings import KeywordSettings


def find_words(root: str | Path) -> list[str]:
    """The words of a data set: its folders that hold WAV files, but for those that begin with "_" (background noise).

    Raises:
        InputError: for a missing folder, and fewer than two words.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    words = sorted(folder.name for folder in root.iterdir() if not folder.name.startswith(("_", ".")) and any(folder.glob("*.wav")))
    if len(words) < 2:
        raise InputError(f"{root}: needs a folder of WAV files for each of two words or more; it has {', '.join(words) or 'none'}")
    return words


def read_recordings(root: str | Path, split: str, *, words: Sequence[str], fraction: float) -> list[Clip]:
    """The recordings of one split: "train", "validation" or "test".

    By the lists that Speech Commands comes with; where there are none, `fraction` of the speakers, and one at least, validate, and
    "test" is the same. A speaker is what stands before "_nohash_" in a name, as in that data set, else the whole name.

    Raises:
        InputError: as `read_speech_commands`, where a split is empty, and where there is one speaker alone.
    """
    root = Path(root)
    if any((root / name).is_file() for name in LISTS.values()):
        found = read_speech_commands(root, split, words=list(words))
    else:
        clips = _all(root, words)
        held_out = _held_out({_speaker(clip.path) for clip in clips}, fraction)
        if not held_out:
            raise InputError(f"{root}: all recordings are of one speaker; two or more are needed to hold one out")
        found = [clip for clip in clips if (_speaker(clip.path) in held_out) == (split != "train")]
    if not found:
        raise InputError(f"{root}: has no recordings for the split {split!r}")
    return found


def _all(root: Path, words: Sequence[str]) -> list[Clip]:
    found = []
    for label, word in enumerate(words):
        paths = sorted((root / word).glob("*.wav"))
        if not paths:
            raise InputError(f"{root}: has no WAV files of the word {word}")
        found += [Clip(path, label) for path in paths]
    return found


def _speaker(path: Path) -> str:
    return re.sub(r"_nohash_.*$", "", path.stem)


def _held_out(speakers: set[str], fraction: float) -> set[str]:
    """Those with a checksum below `fraction`, so that speakers keep their side when others come; but some, and not all."""
    places = {speaker: _place(speaker) for speaker in speakers}
    count = sum(place < fraction for place in places.values())
    return set(sorted(speakers, key=places.__getitem__)[: min(max(1, count), len(speakers) - 1)])


def _place(speaker: str) -> float:
    """From 0 to 1, by a checksum."""
    digest = hashlib.sha1(speaker.encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def read_word(path: Path) -> NDArray[np.float32]:
    """The samples of a recording at 16 kHz.

    Raises:
        InputError: for an unreadable file, another rate, and fewer samples than a frame of 25 ms has.
    """
    waveform, rate = read_wav(path)
    if rate != SAMPLE_RATE:
        raise InputError(f"{path}: is sampled at {rate} Hz; {SAMPLE_RATE} Hz is needed (resample it first)")
    if len(waveform) < int(FRAME_SECONDS * SAMPLE_RATE):
        raise InputError(f"{path}: lasts {1000 * len(waveform) / rate:.0f} ms; one frame takes {1000 * FRAME_SECONDS:.0f} ms")
    return waveform.astype(np.float32, copy=False)


def features_of(waveform: NDArray[np.float32], settings: KeywordSettings) -> NDArray[np.float32]:
    """What the network takes of a recording: frames, mel bins."""
    return normalise(fit_length(log_mel(waveform, num_mel_bins=settings.mel_bins), settings.frames))


def windows_of(waveform: NDArray[np.float32], settings: KeywordSettings) -> Iterator[tuple[float, NDArray[np.float32]]]:
    """A recording of any length as clips half a clip apart: when each begins, in seconds, and its features."""
    length = round((settings.frames - 1) * SHIFT_SECONDS * SAMPLE_RATE) + int(FRAME_SECONDS * SAMPLE_RATE)
    last = max(0, len(waveform) - length)
    steps = -(-2 * last // length)
    for start in (round(last * step / max(1, steps)) for step in range(steps + 1)):
        yield start / SAMPLE_RATE, features_of(waveform[start : start + length], settings)


class WordSamples:
    """Training samples; see `vsuite.core.training.task.TrainingDataset`. The target is what share of each word there is."""

    def __init__(self, clips: Sequence[Clip], num_words: int, settings: KeywordSettings) -> None:
        self.clips, self.num_words, self.settings = list(clips), num_words, settings

    def __len__(self) -> int:
        return len(self.clips)

    def sample(self, index: int, rng: np.random.Generator) -> dict[str, Tensor]:
        clip, settings = self.clips[index], self.settings
        waveform = read_word(clip.path)
        target = np.zeros(self.num_words, np.float32)
        target[clip.label] = 1
        if rng.random() < settings.mixup:
            other = self.clips[rng.integers(len(self.clips))]
            share = np.float32(rng.beta(settings.mixup_beta, settings.mixup_beta))
            waveform = mixed(waveform, read_word(other.path), share)
            target *= share
            target[other.label] += 1 - share
        features = fit_length(log_mel(waveform, num_mel_bins=settings.mel_bins), settings.frames)
        features = masked(features, settings.mask_time, settings.mask_frequency, rng)
        features = normalise(features)
        if settings.noise:
            features = features + rng.random(features.shape, np.float32) * np.float32(rng.random() * settings.noise)
        if settings.shift:
            features = np.roll(features, rng.integers(-settings.shift, settings.shift), 0)
        return {"features": torch.from_numpy(np.ascontiguousarray(features)), "target": torch.from_numpy(target)}


def mixed(first: NDArray[np.float32], second: NDArray[np.float32], share: np.float32) -> NDArray[np.float32]:
    """`share` of one recording and the rest of another, each without its mean; it lasts as long as the first."""
    second = second[: len(first)] - second.mean()
    return share * (first - first.mean()) + (1 - share) * np.pad(second, (0, len(first) - len(second)))


def masked(features: NDArray[np.float32], most_frames: int, most_bins: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """A band of frames and one of bins set to 0: widths uniform up to the most, places uniform."""
    features = features.copy()
    for axis, most in ((0, most_frames), (1, most_bins)):
        length = features.shape[axis]
        width = int(rng.uniform(0, min(most, length)))
        start = int(rng.uniform(0, length - width))
        band = [slice(None), slice(None)]
        band[axis] = slice(start, start + width)
        features[tuple(band)] = 0
    return features
