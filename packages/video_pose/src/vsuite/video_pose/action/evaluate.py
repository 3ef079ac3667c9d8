"""How well actions are told apart: by clip, by video, and while the frames still come in."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import write_csv, write_text
from vsuite.core.images.evaluation import write_confusion
from vsuite.core.terminal import console, new_table
from vsuite.video_pose.action.clips import Video
from vsuite.video_pose.action.data import divide, read_videos
from vsuite.video_pose.action.predict import BATCH, Predictor
from vsuite.video_pose.action.samples import TestClips
from vsuite.video_pose.action.settings import ActionSettings
from vsuite.video_pose.action.stream import check_streams
from vsuite.video_pose.action.task import figures
from vsuite.video_pose.metrics.actions import confusion
from vsuite.video_pose.models.lmuformer import LMUFormer

SHARES = (0.25, 0.5, 0.75, 1.0)
EVERYTHING = "all"


def evaluate(
    weights: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    fraction: float | None = None,
    fold: int | None = None,
    num_clips: int = 1,
    stream: bool = False,
    films: str | Path | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """Compares what a model says of labelled videos with their labels; prints tables and writes files.

    Args:
        data: see `data.read_videos`.
        out: folder for metrics.json, predictions.csv, confusion.csv and confusion.png.
        split, fraction, fold: which videos are held out; see `data.divide`. None takes what the weights were trained with. The
            split "all" takes all labelled videos.
        num_clips: clips a video for weights that look at whole videos; the mean of their probabilities counts.
        stream: run frame by frame too, and say what is known after a quarter, half and three quarters of each clip.
        films: folder with the videos of a file of annotations.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: for data that do not fit the weights, and models that cannot stream.
    """
    predictor = Predictor(weights, device=device)
    if stream:
        check_streams(predictor.model, predictor.note.clip)
    videos, about = _held_out(predictor, data, split, fraction, fold, films)
    for video in videos:
        predictor.check(video)
    clips = predictor.clips_of(videos, num_clips)
    scores = np.log(np.maximum(predictor.scores(clips), 1e-30))
    of_videos = np.stack([np.exp(scores[clips.owners == i]).mean(0) for i in range(len(videos))])
    labels = np.array([video.label for video in videos])
    classes = predictor.note.classes
    content: dict[str, Any] = {
        "weights": str(weights),
        "data": str(data),
        "held_out": about,
        "clips": {"count": len(clips), **figures(scores, clips.labels, classes)},
        "videos": {"count": len(videos), "clips_each": num_clips, **figures(of_videos, labels, classes)},
    }
    if stream:
        content["stream"] = _streamed(predictor, clips)
    _print(content, classes)
    _write(content, Path(out), videos, of_videos, confusion(scores, clips.labels), classes)
    return content


def _held_out(
    predictor: Predictor, data: str | Path, split: str | None, fraction: float | None, fold: int | None, films: str | Path | None
) -> tuple[list[Video], str]:
    found = read_videos(data, predictor.layout, predictor.note.clip, films=films)
    classes = predictor.note.classes
    if found.classes and not set(found.classes) <= set(classes):
        raise InputError(f"{data}: its classes {', '.join(found.classes[:10])} are not the model's, {', '.join(classes[:10])}")
    note = predictor.note
    settings = ActionSettings(
        layout=note.layout,
        classes=[] if found.classes else classes,
        split=split or (note.split if found.splits else None),
        fold=note.fold if fold is None else fold,
    )
    if split == EVERYTHING:
        videos, about = [video for video in found.videos if video.label >= 0], "all labelled videos"
    else:
        divided = divide(found, settings, note.fraction if fraction is None else fraction)
        videos, about = divided.held_out, divided.about
    if not videos:
        raise InputError(f"{data}: no video has a label to compare with")
    names = found.classes or classes
    if max(video.label for video in videos) >= len(names):
        raise InputError(f"{data}: its labels go up to {max(video.label for video in videos)}; the model knows {len(classes)} classes")
    return [replace(video, label=classes.index(names[video.label])) for video in videos], about


@torch.inference_mode()
def _streamed(predictor: Predictor, clips: TestClips) -> dict[str, Any]:
    """Every clip pushed frame by frame: the figures of the last answers, how far these are from the parallel ones, and those before."""
    model = predictor.model
    assert isinstance(model, LMUFormer)
    after: dict[float, list[NDArray[np.float32]]] = {share: [] for share in SHARES}
    difference = 0.0
    stream = model.stream()
    for numbers in clips.batches(BATCH):
        sequence = clips.batch(numbers)["sequence"].to(predictor.device)
        answers = [answer for frame in sequence.unbind(1) if (answer := stream.push(frame)) is not None]
        owed = stream.finish()
        assert owed is not None
        running = torch.stack([*answers, *owed.unbind(1)], 1)  # B, T, K
        for share in SHARES:
            after[share].append(running[:, max(1, round(share * running.shape[1])) - 1].cpu().numpy())
        difference = max(difference, float((running[:, -1] - model(sequence)).abs().max()))
    found = {share: np.concatenate(parts) for share, parts in after.items()}
    classes = predictor.note.classes
    running_figures = {f"{share:.0%}": figures(found[share], clips.labels, classes)["balanced_accuracy"] for share in SHARES}
    return {
        "delay_samples": stream.delay,
        "largest_difference_of_scores": difference,
        "balanced_accuracy_after": running_figures,
        **figures(found[1.0], clips.labels, classes),
    }


def _print(content: dict[str, Any], classes: Sequence[str]) -> None:
    out = console()
    out.print(f"{content['data']}: {content['held_out']}")
    parts = [name for name in ("clips", "videos", "stream") if name in content]
    heads = {"clips": "by clip", "videos": "by video", "stream": "streamed"}
    table = new_table("figure", *(heads[part] for part in parts), right=[heads[part] for part in parts])
    rows = [name for name in content["clips"] if name != "count"]
    for name in rows[:60]:
        table.add_row(name.replace("_", " "), *(f"{100 * content[part][name]:.1f} %" for part in parts))
    out.print(table)
    counts = f"{content['clips']['count']} clips of {content['videos']['count']} videos"
    out.print(f"{counts}; balanced accuracy: the mean over classes of the share found")
    if "stream" in content:
        stream = content["stream"]
        after = ", ".join(f"{share} {100 * value:.1f} %" for share, value in stream["balanced_accuracy_after"].items())
        out.print(f"streamed, {stream['delay_samples']} samples late; balanced accuracy after that share of a clip: {after}")
        out.print(f"the last answers differ from the parallel ones by at most {stream['largest_difference_of_scores']:.1e}")


def _write(
    content: dict[str, Any],
    out: Path,
    videos: Sequence[Video],
    scores: NDArray[np.floating],
    table: NDArray[np.int64],
    classes: Sequence[str],
) -> None:
    write_text(out / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    rows: list[list[Any]] = [["name", "truth", "label", "probability", *classes]]
    for video, row in zip(videos, scores, strict=True):
        best = int(row.argmax())
        rows.append([video.name, classes[video.label], classes[best], f"{row[best]:.6f}", *(f"{value:.6f}" for value in row)])
    write_csv(out / "predictions.csv", rows)
    write_confusion(table, classes, out)
