"""Saying what people do in videos, clip by clip or frame by frame; and which joints and frames the decision looked at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsuite.core.batch import Summary, check_results, find_files
from vsuite.core.devices import Precision, autocast, check_precision, pick_device
from vsuite.core.errors import InputError
from vsuite.core.files import write_csv, write_text
from vsuite.core.optimize import optimize_for_inference
from vsuite.video_pose.action.clips import Video, check_video
from vsuite.video_pose.action.data import FILMS, POSES, read_videos
from vsuite.video_pose.action.samples import TestClips, check_film, form_of, run_model
from vsuite.video_pose.action.stream import ActionStream, Decision, check_streams
from vsuite.video_pose.action.task import Note
from vsuite.video_pose.notes import load_model
from vsuite.video_pose.outcome import free_name
from vsuite.video_pose.skeletons import skeleton

BATCH = 16  # clips a call of the network
READABLE = (*POSES, *FILMS, ".pkl", ".pickle", ".skeleton")


@dataclass(frozen=True)
class Clip:
    """What was found in one clip: its first and last frame, and the probabilities K."""

    first: int
    last: int
    probabilities: NDArray[np.float32]


@dataclass(frozen=True)
class Prediction:
    """What was found in one video.

    Attributes:
        probabilities: K, the mean over the clips.
        clips: in order.
    """

    name: str
    classes: list[str]
    probabilities: NDArray[np.float32]
    clips: list[Clip]

    @property
    def label(self) -> str:
        return self.classes[int(self.probabilities.argmax())]

    def top(self, count: int) -> list[tuple[str, float]]:
        """The most likely classes with their probabilities."""
        return [(self.classes[i], float(self.probabilities[i])) for i in np.argsort(-self.probabilities, kind="stable")[:count]]


class Predictor:
    """A model kept in memory for any number of videos.

    Args:
        source: weights that `vsuite-pose train` saved, or a run folder.
        device: "cpu", "cuda" or "cuda:N"; "auto" or None takes a GPU where there is one.
        precision: "fp32", or "bf16" / "fp16" for autocast.

    Attributes:
        note: classes, layout and clips of the weights.
        form: what the model takes; see `samples.Form`.

    Raises:
        InputError: for files that are no weights for actions.
    """

    def __init__(self, source: str | Path, *, device: str | torch.device | None = None, precision: Precision = "fp32") -> None:
        check_precision(precision)
        self.source = str(source)
        network, self.note = load_model(source, "action", Note)
        self.form = form_of(network)
        self.layout = skeleton(self.note.layout)
        self.device, self.precision = pick_device(device), precision
        self.model: Any = optimize_for_inference(network, precision=precision).to(self.device)

    def check(self, video: Video) -> None:
        """Raises `InputError` where a video cannot be used: joints, frames, coordinates, and its film where one is looked at."""
        check_video(video, self.layout, self.note.clip, needs_people=self.form != "film")
        if self.form == "film":
            check_film(video)

    def scores(self, clips: TestClips) -> NDArray[np.float32]:
        """Probabilities of clips: N, K."""
        found = []
        with torch.inference_mode(), autocast(self.device, self.precision):
            for numbers in clips.batches(BATCH):
                batch = {name: value.to(self.device) for name, value in clips.batch(numbers).items()}
                found.append(torch.softmax(run_model(self.model, batch).float(), 1).cpu().numpy())
        return np.concatenate(found)

    def clips_of(self, videos: Sequence[Video], num_clips: int = 1) -> TestClips:
        """The clips of videos that `predict` looks at."""
        return TestClips(videos, self.note.clip, self.form, self.layout, num_clips=num_clips)

    def predict(self, video: Video, *, num_clips: int = 1) -> Prediction:
        """What is done in a video: the mean of the probabilities of its clips.

        Args:
            video: see `Video.of` for arrays.
            num_clips: clips of the whole video, each of other frames; of weights with a window there are as many as half windows.

        Raises:
            InputError: for videos that cannot be used.
        """
        self.check(video)
        clips = self.clips_of([video], num_clips)
        found = self.scores(clips)
        parts = [Clip(int(frames.min()), int(frames.max()), row) for (_, frames), row in zip(clips.places, found, strict=True)]
        return Prediction(video.name, self.note.classes, found.mean(0), parts)

    def stream(self, *, window: int | None = None, image_shape: tuple[int, int] | None = None) -> ActionStream:
        """A decision after every frame; see `ActionStream`."""
        return ActionStream(self.model, self.note.classes, self.layout, self.note.clip, window=window, image_shape=image_shape)

    def explain(self, video: Video) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Which joints in which frames the decision about a video's middle clip looked at.

        Returns:
            M, T, J of sum 1 (0 without anyone), and the T frames.

        Raises:
            InputError: for videos that cannot be used, and models without attention over joints.
        """
        if self.form == "sequence":
            raise InputError(f"{self.source}: LMUFormer has no attention over joints to show; the deformable transformers have")
        self.check(video)
        clips = self.clips_of([video])
        middle = len(clips) // 2
        batch = {name: value.to(self.device) for name, value in clips.batch([middle]).items()}
        given = [batch[name] for name in ("film", "joints", "scores") if name in batch]
        with torch.inference_mode():
            found = self.model.joint_attention(*given)
        return found[0].float().cpu().numpy(), clips.places[middle][1]


@dataclass(frozen=True)
class Wanted:
    """What is written beside the labels.

    Attributes:
        top: classes a video that are listed.
        num_clips: see `Predictor.predict`.
        each_person: everyone is a video of their own.
        stream: the running decision, frame by frame.
        explain: pictures of the attention over joints and frames.
        films: folder with the videos of a file of annotations.
    """

    top: int = 5
    num_clips: int = 1
    each_person: bool = False
    stream: bool = False
    explain: bool = False
    films: Path | None = None


def predict_files(
    predictor: Predictor, inputs: Sequence[str | Path], out: str | Path, *, wanted: Wanted | None = None, overwrite: bool = False
) -> Summary:
    """Says what is done in every video of some files: `actions.json` and `actions.csv`, and what `wanted` asks for.

    One bad file or video does not stop the others.

    Raises:
        InputError: where nothing that was given is there, for results that are there, and what the model cannot do: before anything
            is computed.
    """
    wanted, out = wanted or Wanted(), Path(out)
    _check_request(predictor, out, wanted, overwrite=overwrite)
    found: list[dict[str, Any]] = []
    taken: set[str] = set()
    paths, missing = find_files(inputs, lambda folder: [folder], lambda path: path.suffix in READABLE or path.is_dir(), "videos of people")
    summary = Summary(failed=missing)
    for given in paths:
        try:
            videos = read_videos(given, predictor.layout, predictor.note.clip, films=wanted.films).videos
        except InputError as error:
            summary.failed.append(str(error))
            continue
        for video in _separate(videos) if wanted.each_person else videos:
            try:
                prediction = predictor.predict(video, num_clips=wanted.num_clips)
                extra = _extras(predictor, video, out, wanted, free_name(video.name, taken))
            except InputError as error:
                summary.failed.append(str(error))
                continue
            found.append(_entry(prediction, str(given), wanted.top, predictor.note.clip.fps) | extra)
            best = prediction.top(2)
            summary.lines.append(f"{video.name}: " + ", ".join(f"{name} {100 * chance:.0f} %" for name, chance in best))
    if found:
        _write(found, predictor, out)
    return summary


def _check_request(predictor: Predictor, out: Path, wanted: Wanted, *, overwrite: bool) -> None:
    check_results(out, ("actions.json", "actions.csv"), overwrite=overwrite)
    if wanted.stream:
        check_streams(predictor.model, predictor.note.clip)
    if wanted.explain and predictor.form == "sequence":
        raise InputError(f"{predictor.source}: LMUFormer has no attention over joints to show; the deformable transformers have")


def _separate(videos: Sequence[Video]) -> list[Video]:
    return [
        replace(video, name=f"{video.name} person {i}", joints=video.joints[i : i + 1], scores=video.scores[i : i + 1])
        for video in videos
        for i in range(len(video.joints))
    ]


def _entry(found: Prediction, file: str, top: int, fps: float | None) -> dict[str, Any]:
    def part(clip: Clip) -> dict[str, Any]:
        best = int(clip.probabilities.argmax())
        seconds = {} if fps is None else {"seconds": [round(clip.first / fps, 3), round((clip.last + 1) / fps, 3)]}
        return {
            "frames": [clip.first, clip.last],
            **seconds,
            "label": found.classes[best],
            "probability": _rounded(clip.probabilities[best]),
        }

    ranked = [{"label": name, "probability": _rounded(chance)} for name, chance in found.top(top)]
    return {"name": found.name, "file": file, **ranked[0], "top": ranked, "clips": [part(clip) for clip in found.clips]}


def _rounded(value: float) -> float:
    return round(float(value), 6)


def _extras(predictor: Predictor, video: Video, out: Path, wanted: Wanted, name: str) -> dict[str, Any]:
    extra = {}
    if wanted.stream:
        path = out / f"{name}_stream.csv"
        decisions = stream_video(predictor, video)
        write_csv(path, _stream_table(decisions, predictor.note))
        extra["stream"] = path.name
    if wanted.explain:
        from vsuite.video_pose.action.pictures import attention_picture

        path = out / f"{name}_attention.png"
        attention, frames = predictor.explain(video)
        attention_picture(attention, frames, predictor.layout, path, title=video.name)
        extra["attention"] = path.name
    return extra


def stream_video(predictor: Predictor, video: Video) -> list[Decision]:
    """The decisions about a video as they come, frame by frame."""
    predictor.check(video)
    stream = predictor.stream(image_shape=video.image_shape)
    order = np.argsort(-video.scores.sum((1, 2), dtype=np.float64), kind="stable")
    joints, scores = video.joints[order].transpose(1, 0, 2, 3), video.scores[order].transpose(1, 0, 2)
    pushed = [stream.push(frame, score) for frame, score in zip(joints, scores, strict=True)]
    return [one for one in pushed if one is not None] + stream.finish()


def _stream_table(decisions: Sequence[Decision], note: Note) -> list[list[Any]]:
    rows: list[list[Any]] = [["frame", "seconds", "label", "probability", *note.classes]]
    for one in decisions:
        best = int(one.probabilities.argmax())
        seconds = "" if note.clip.fps is None else f"{one.frame / note.clip.fps:.3f}"
        values = [f"{value:.6f}" for value in one.probabilities]
        rows.append([one.frame, seconds, note.classes[best], values[best], *values])
    return rows


def _write(found: Sequence[dict[str, Any]], predictor: Predictor, out: Path) -> None:
    note = predictor.note
    content = {"weights": predictor.source, "classes": note.classes, "layout": note.layout, "clip": note.clip.model_dump(), "videos": found}
    write_text(out / "actions.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    places = range(1, len(found[0]["top"]) + 1)
    head = ["name", "file", *(f"{what}_{place}" for place in places for what in ("label", "probability"))]
    rows = ([entry["name"], entry["file"], *(value for one in entry["top"] for value in one.values())] for entry in found)
    write_csv(out / "actions.csv", [head, *rows])
