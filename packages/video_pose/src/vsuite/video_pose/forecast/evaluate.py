"""How good predictions of videos are: OpenSTL's figures, over all and frame by frame, beside those of repeating the last frame."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import write_csv, write_text
from vsuite.core.terminal import console, new_table
from vsuite.video_pose.forecast.clips import Clips
from vsuite.video_pose.forecast.data import read_data
from vsuite.video_pose.forecast.figures import Figures
from vsuite.video_pose.forecast.note import Note
from vsuite.video_pose.forecast.predict import Predictor, as_rgb
from vsuite.video_pose.forecast.settings import ForecastSettings
from vsuite.video_pose.forecast.task import BATCH, halves
from vsuite.video_pose.outcome import evenly
from vsuite.video_pose.render.strips import write_animation, write_strip

PICTURES = 4
BASELINES = ("last frame repeated", "black frames")


@dataclass(frozen=True)
class Evaluation:
    """Figures of the model and of what asks for no model.

    Attributes:
        clips: that were predicted.
        definitions: of each figure.
        rows: figures by what they are of: "model", "last frame repeated" and (but for weather) "black frames".
        frames: of the model, for each frame in the order of time.
    """

    clips: int
    definitions: dict[str, str]
    rows: dict[str, dict[str, float]]
    frames: list[dict[str, float]]


def evaluate(
    weights: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    split: str | None = None,
    most: int | None = None,
    settings: ForecastSettings | None = None,
    device: str = "auto",
) -> Evaluation:
    """Predicts the clips of a data set, prints a table, and writes `metrics.json`, `frames.csv`, strips and animations.

    Args:
        weights: file or run folder.
        data: see `read_data`.
        out: a folder.
        split: of the data; None takes test, else val, else all.
        most: clips at the most, evenly spread.
        settings: how clips are cut; None cuts them as the model has learnt them.

    Raises:
        InputError: for data that cannot be read, and frames of another size than the model's.
    """
    predictor, out = Predictor(weights, device=device), Path(out)
    note = predictor.note
    clips = read_data(data, settings or settings_of(note), scale=(note.mean, note.std)).split(split)
    if clips.shape != (2 * note.frames, *note.frame):
        raise InputError(f"{data}: its clips are {clips.shape}, and those of this model {(2 * note.frames, *note.frame)}")
    chosen = evenly(len(clips), most)
    found = judge(predictor, clips, chosen)
    show(found, note)
    write(found, out, data=str(data), split=split, weights=str(weights), layout=note.layout)
    for number in (chosen[place] for place in evenly(len(chosen), PICTURES)):
        observed, later = halves(clips.clip(number, None))
        predicted = predictor.predict_batch(observed[None])[0]
        shown = [as_rgb(note.restore(part) if note.layout == "weatherbench" else part, note) for part in (observed, predicted, later)]
        write_strip(out / f"clip_{number}.png", *shown)
        write_animation(out / f"clip_{number}.gif", *shown)
    return found


def settings_of(note: Note) -> ForecastSettings:
    """Clips as the model has learnt them; other layouts than its own are found out."""
    return ForecastSettings(
        frames=note.frames,
        stride=note.stride,
        colours=note.colours,
        digits=note.digits,
        variable=note.variable,
        years=note.years,
        size=(note.height, note.width),
    )


def judge(predictor: Predictor, clips: Clips, chosen: list[int]) -> Evaluation:
    """Figures of some clips, a batch at a time."""
    note = predictor.note
    names = ("model", *(BASELINES if note.layout != "weatherbench" else BASELINES[:1]))
    totals, single = {name: Figures(note) for name in names}, [Figures(note) for _ in range(note.frames)]
    with console(stderr=True).status("") as status:
        for start in range(0, len(chosen), BATCH):
            status.update(f"{start} of {len(chosen)} clips")
            pairs = [halves(clips.clip(number, None)) for number in chosen[start : start + BATCH]]
            observed, later = (np.stack(parts) for parts in zip(*pairs, strict=True))
            predicted = predictor.predict_batch(observed)
            guesses = {"model": predicted, BASELINES[0]: np.repeat(observed[:, -1:], later.shape[1], axis=1)}
            guesses |= {BASELINES[1]: np.zeros_like(later)}
            for name in names:
                totals[name].add(guesses[name], later)
            for frame, figures in enumerate(single):
                figures.add(predicted[:, frame : frame + 1], later[:, frame : frame + 1])
    rows = {name: figures.means() for name, figures in totals.items()}
    return Evaluation(len(chosen), totals["model"].definitions, rows, [figures.means() for figures in single])


def show(found: Evaluation, note: Note) -> None:
    """Prints the table, and what the figures mean."""
    figures = list(found.definitions)
    table = new_table("", *figures, right=figures, title=f"{found.clips} clips, {note.frames} frames predicted from {note.frames}")
    for name, values in found.rows.items():
        table.add_row(name, *(f"{values[figure]:.4g}" for figure in figures))
    console().print(table)
    for figure, text in found.definitions.items():
        console().print(f"{figure}: {text}", style="dim")


def write(found: Evaluation, out: Path, **facts: Any) -> None:
    """Writes `metrics.json` and `frames.csv`; what is infinite (PSNR of what is exact) is null and empty."""
    rows = {name: {figure: _finite(value) for figure, value in values.items()} for name, values in found.rows.items()}
    content = {**facts, "clips": found.clips, "definitions": found.definitions, "figures": rows}
    write_text(out / "metrics.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    lines = ([number, *map(_finite, values.values())] for number, values in enumerate(found.frames, 1))
    write_csv(out / "frames.csv", [["frame", *found.definitions], *lines])


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
