"""Saying which word is spoken in a recording, clip by clip, or while the samples still come in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from vsuite.core.batch import Summary, check_results, find_files
from vsuite.core.devices import Precision, autocast, check_precision, pick_device
from vsuite.core.errors import InputError
from vsuite.core.files import write_csv, write_text
from vsuite.core.optimize import optimize_for_inference
from vsuite.video_pose.data.speech import FRAME_SECONDS, SAMPLE_RATE, SHIFT_SECONDS, FeatureStream, normalise
from vsuite.video_pose.keywords.data import read_word, windows_of
from vsuite.video_pose.keywords.task import Note
from vsuite.video_pose.models.lmuformer import LMUFormer
from vsuite.video_pose.notes import load_model
from vsuite.video_pose.outcome import free_name

T = TypeVar("T")
BATCH = 32  # clips a call of the network
CHUNK = 1600  # samples that `--stream` reads at a time: 0.1 s


@dataclass(frozen=True)
class Heard:
    """What was heard up to a moment.

    Attributes:
        seconds: when the last 25 ms end that the answer knows of.
        probabilities: of each word, K, independent of each other.
    """

    seconds: float
    probabilities: NDArray[np.float32]


class Predictor:
    """A model kept in memory for any number of recordings.

    Args:
        source: weights that `vsuite-pose train` saved, or a run folder.
        device: "cpu", "cuda" or "cuda:N"; "auto" or None takes a GPU where there is one.
        precision: "fp32", or "bf16" / "fp16" for autocast.

    Raises:
        InputError: for files that are no weights for words.
    """

    def __init__(self, source: str | Path, *, device: str | torch.device | None = None, precision: Precision = "fp32") -> None:
        check_precision(precision)
        self.source = str(source)
        network, self.note = load_model(source, "keywords", Note)
        self.settings = self.note.settings
        self.device, self.precision = pick_device(device), precision
        self.model: Any = optimize_for_inference(network, precision=precision).to(self.device)

    def predict(self, recording: NDArray[np.float32] | str | Path) -> list[Heard]:
        """Which words are spoken, in clips half a clip apart; recordings up to the length of a clip are one.

        Args:
            recording: a WAV file, or samples at 16 kHz in [-1, 1].

        Raises:
            InputError: for files that cannot be read, other rates, fewer than 25 ms, and NaN.
        """
        waveform = read_word(Path(recording)) if isinstance(recording, str | Path) else np.asarray(recording, np.float32)
        if waveform.ndim != 1 or len(waveform) < FRAME_SECONDS * SAMPLE_RATE:
            raise InputError(f"a recording is a row of {FRAME_SECONDS * SAMPLE_RATE:.0f} samples or more; got {waveform.shape}")
        length = (self.settings.frames - 1) * SHIFT_SECONDS + FRAME_SECONDS
        heard = []
        for clips in _some(windows_of(waveform, self.settings), BATCH):
            features = torch.from_numpy(np.stack([one for _, one in clips])).to(self.device)
            with torch.inference_mode(), autocast(self.device, self.precision):
                found = torch.sigmoid(self.model(features).float()).cpu().numpy()
            ends = (min(start + length, len(waveform) / SAMPLE_RATE) for start, _ in clips)
            heard += [Heard(end, row) for end, row in zip(ends, found, strict=True)]
        return heard

    def stream(self, *, window: int | None = None) -> KeywordStream:
        """Answers while samples come in; see `KeywordStream`."""
        return KeywordStream(self.model, self.note, window=window)


class KeywordStream:
    """Takes samples as they come, any number at a time, and says what was heard. Memory does not grow.

    After a recording no longer than a clip, the last answer of `finish` is that of `Predictor.predict`: the state is exact.

    Args:
        window: frames of 10 ms that an answer is about; None takes a clip's.

    Attributes:
        delay: seconds by which answers come late.

    Raises:
        InputError: for models that cannot stream.
    """

    def __init__(self, model: torch.nn.Module, note: Note, *, window: int | None = None) -> None:
        if not isinstance(model, LMUFormer) or model.form == "spiking_attention":
            raise InputError("the spiking form with self-attention looks at later frames too and does not stream; the other forms do")
        self.note = note
        self._device = next(model.parameters()).device
        self._features = FeatureStream(num_mel_bins=note.mel_bins)
        self._stream = model.stream(window=window or note.frames)
        self.delay = self._stream.delay * SHIFT_SECONDS + self._features.delay
        self.reset()

    def reset(self) -> None:
        """Starts a new recording."""
        self._features.reset()
        self._stream.reset()
        self._pushed = self._answered = 0

    def push(self, samples: NDArray[np.floating]) -> list[Heard]:
        """Samples at 16 kHz in [-1, 1] -> the answers that are ready now, one for every 10 ms.

        Raises:
            InputError: for another shape, and NaN or infinite samples.
        """
        samples = np.asarray(samples, np.float32)
        if samples.ndim != 1 or not np.isfinite(samples).all():
            raise InputError(f"a stream takes rows of finite samples; got an array of {samples.shape} or NaN")
        return self._push(self._features.push(samples))

    def finish(self) -> list[Heard]:
        """Ends the recording, as if silence (zeros, as clips are padded) followed up to the length of a clip; the answers still owed."""
        missing = max(0, self.note.frames - self._pushed)
        found = self._push(np.zeros((missing, self.note.mel_bins), np.float32))
        owed = self._stream.finish()
        found += [] if owed is None else [self._heard(answer) for answer in owed.unbind(1)]
        self.reset()
        return found

    def _push(self, frames: NDArray[np.float32]) -> list[Heard]:
        self._pushed += len(frames)
        answers = (self._stream.push(torch.from_numpy(row[None]).to(self._device)) for row in normalise(frames))
        return [self._heard(answer) for answer in answers if answer is not None]

    def _heard(self, answer: torch.Tensor) -> Heard:
        seconds = self._answered * SHIFT_SECONDS + FRAME_SECONDS
        self._answered += 1
        return Heard(seconds, torch.sigmoid(answer[0].float()).cpu().numpy())


def _some(values: Iterator[T], count: int) -> Iterator[list[T]]:
    """`count` at a time; long recordings are never whole in memory as clips."""
    while part := list(itertools.islice(values, count)):
        yield part


def stream_recording(predictor: Predictor, path: Path, chunk: int = CHUNK) -> Iterator[Heard]:
    """The answers about a WAV file as they come, with `chunk` samples at a time."""
    stream, waveform = predictor.stream(), read_word(path)
    for start in range(0, len(waveform), chunk):
        yield from stream.push(waveform[start : start + chunk])
    yield from stream.finish()


def find_recordings(inputs: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """The WAV files in files, folders (with their sub-folders) and patterns; see `vsuite.core.batch.find_files`."""
    return find_files(inputs, lambda folder: sorted(folder.rglob("*.wav")), lambda path: path.suffix.lower() == ".wav", "WAV files")


def predict_files(
    predictor: Predictor, inputs: Sequence[str | Path], out: str | Path, *, top: int = 3, stream: bool = False, overwrite: bool = False
) -> Summary:
    """Says which word is spoken in every WAV file: `keywords.json` and `keywords.csv`, and with `stream` the answer every 10 ms.

    One bad file does not stop the others.

    Raises:
        InputError: where nothing that was given is there, for results that are there, and models that cannot stream: before anything
            is computed.
    """
    out, (paths, missing) = Path(out), find_recordings(inputs)
    summary = Summary(failed=missing)
    check_results(out, ("keywords.json", "keywords.csv"), overwrite=overwrite)
    if stream:
        predictor.stream()
    found: list[dict[str, Any]] = []
    taken: set[str] = set()
    for path in paths:
        try:
            entry = _entry(predictor, path, top)
            if stream:
                entry["stream"] = _write_stream(predictor, path, out, free_name("_".join([*path.parts[-2:-1], path.stem, "stream"]), taken))
        except InputError as error:
            summary.failed.append(str(error))
            continue
        found.append(entry)
        summary.lines.append(f"{path}: " + ", ".join(f"{one['word']} {100 * one['probability']:.0f} %" for one in entry["top"][:2]))
    if found:
        _write(found, predictor, out)
    return summary


def _entry(predictor: Predictor, path: Path, top: int) -> dict[str, Any]:
    words, heard = predictor.note.words, predictor.predict(path)
    highest = np.max([one.probabilities for one in heard], axis=0)
    ranked = [{"word": words[i], "probability": round(float(highest[i]), 6)} for i in np.argsort(-highest, kind="stable")[:top]]
    clips = [
        {"until_seconds": round(one.seconds, 3), "word": words[int(one.probabilities.argmax())], "probability": _best(one)} for one in heard
    ]
    return {"file": str(path), **ranked[0], "top": ranked, "clips": clips}


def _write(found: Sequence[dict[str, Any]], predictor: Predictor, out: Path) -> None:
    content = {"weights": predictor.source, "words": predictor.note.words, "recordings": found}
    write_text(out / "keywords.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    places = range(1, len(found[0]["top"]) + 1)
    head = ["file", *(f"{what}_{place}" for place in places for what in ("word", "probability"))]
    rows = ([entry["file"], *(value for one in entry["top"] for value in one.values())] for entry in found)
    write_csv(out / "keywords.csv", [head, *rows])


def _best(heard: Heard) -> float:
    return round(float(heard.probabilities.max()), 6)


def _write_stream(predictor: Predictor, path: Path, out: Path, name: str) -> str:
    words = predictor.note.words
    rows = [
        [
            f"{one.seconds:.3f}",
            words[int(one.probabilities.argmax())],
            f"{_best(one):.6f}",
            *(f"{value:.6f}" for value in one.probabilities),
        ]
        for one in stream_recording(predictor, path)
    ]
    write_csv(out / f"{name}.csv", [["seconds", "word", "probability", *words], *rows])
    return f"{name}.csv"
