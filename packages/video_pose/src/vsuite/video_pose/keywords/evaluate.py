"""How well words are told apart, and how much of a recording that takes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import write_csv, write_text
from vsuite.core.images.evaluation import write_confusion
from vsuite.core.terminal import console, new_table
from vsuite.video_pose.data.speech import Clip
from vsuite.video_pose.keywords.data import features_of, find_words, read_recordings, read_word
from vsuite.video_pose.keywords.predict import Predictor
from vsuite.video_pose.keywords.task import figures, score_words
from vsuite.video_pose.metrics.actions import confusion

BATCH = 32
SHARES = (0.25, 0.5, 0.68, 0.75, 1.0)  # 0.68: the 87 of 128 frames after which the paper stops


def evaluate(
    weights: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    split: str = "test",
    stream: bool = False,
    device: str = "auto",
) -> dict[str, Any]:
    """Compares what a model hears with what is said; prints a table and writes metrics.json, predictions.csv, confusion.csv and .png.

    Args:
        data: folder in the layout of Speech Commands.
        split: "test", "validation" or "train"; without the data set's lists, "test" is what validated.
        stream: run frame by frame too, and say what is known after a part of each clip.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: for other words than the model's, unreadable recordings, and models that cannot stream.
    """
    predictor = Predictor(weights, device=device)
    if stream:
        predictor.stream()
    words = predictor.note.words
    absent = set(words) - set(find_words(data))
    if absent:
        raise InputError(f"{data}: has no recordings of {', '.join(sorted(absent)[:5])}, which the model knows")
    clips = read_recordings(data, split, words=words, fraction=predictor.note.fraction)
    labels = np.array([clip.label for clip in clips])
    paths = [clip.path for clip in clips]
    scores = np.concatenate(
        [score_words(predictor.model, paths[i : i + BATCH], predictor.settings, predictor.device) for i in range(0, len(paths), BATCH)]
    )
    content: dict[str, Any] = {"weights": str(weights), "data": str(data), "split": split, "count": len(clips), **figures(scores, labels)}
    if stream:
        content["stream"] = _streamed(predictor, paths, labels, scores)
    _print(content, confusion(scores, labels), words)
    _write(content, Path(out), clips, scores, words)
    return content


@torch.inference_mode()
def _streamed(predictor: Predictor, paths: Sequence[Path], labels: NDArray[np.integer], scores: NDArray[np.float32]) -> dict[str, Any]:
    after: dict[float, list[NDArray[np.float32]]] = {share: [] for share in SHARES}
    stream = predictor.model.stream()
    for start in range(0, len(paths), BATCH):
        features = np.stack([features_of(read_word(path), predictor.settings) for path in paths[start : start + BATCH]])
        frames = torch.from_numpy(features).to(predictor.device)
        answers = [answer for frame in frames.unbind(1) if (answer := stream.push(frame)) is not None]
        running = torch.stack([*answers, *stream.finish().unbind(1)], 1).float().cpu().numpy()
        for share in SHARES:
            after[share].append(running[:, max(1, round(share * running.shape[1])) - 1])
    found = {share: np.concatenate(parts) for share, parts in after.items()}
    return {
        "delay_frames": stream.delay,
        "largest_difference_of_scores": float(np.abs(found[1.0] - scores).max()),
        "accuracy_after": {f"{share:.0%}": figures(found[share], labels)["accuracy"] for share in SHARES},
    }


def _print(content: dict[str, Any], table: NDArray[np.int64], words: Sequence[str]) -> None:
    out = console()
    shown = new_table("word", "recordings", "found", right=("recordings", "found"), title=f"{content['data']}, {content['split']}")
    for index, word in enumerate(words):
        count = int(table[index].sum())
        shown.add_row(word, str(count), f"{100 * table[index, index] / count:.1f} %" if count else "-")
    out.print(shown)
    accuracies = f"accuracy {100 * content['accuracy']:.2f} %, balanced {100 * content['balanced_accuracy']:.2f} %"
    out.print(f"{content['count']} recordings: {accuracies}")
    if "stream" in content:
        stream = content["stream"]
        after = ", ".join(f"{share} {100 * value:.1f} %" for share, value in stream["accuracy_after"].items())
        out.print(f"streamed, {stream['delay_frames']} frames late; accuracy after that share of a clip: {after}")
        out.print(f"the last answers differ from the parallel ones by at most {stream['largest_difference_of_scores']:.1e}")


def _write(content: dict[str, Any], out: Path, clips: Sequence[Clip], scores: NDArray[np.float32], words: Sequence[str]) -> None:
    table = confusion(scores, np.array([clip.label for clip in clips]))
    write_text(out / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    rows: list[list[Any]] = [["file", "truth", "word", "score"]]
    rows += [[clip.path, words[clip.label], words[int(row.argmax())], f"{row.max():.4f}"] for clip, row in zip(clips, scores, strict=True)]
    write_csv(out / "predictions.csv", rows)
    write_confusion(table, words, out, "found")
