"""A sheet of images with what was found in them, and the confusion matrix, as PNG files."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from vsuite.core.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAPER, INK, RIGHT, WRONG = "#101214", "#e6e6e6", "#2dd48b", "#ff6b5e"
TILE, GAP, CAPTION = 112, 10, 34  # pixels
COLUMNS = 8
MOST_NUMBERS = 30  # classes up to which the cells of a confusion matrix hold numbers
MOST_NAMES = 60


@dataclass(frozen=True)
class Tile:
    """One image of a sheet.

    Attributes:
        image: H, W, 3 bytes.
        caption: up to two lines.
        right: whether what was found is true; None where that is not known.
    """

    image: NDArray[np.uint8]
    caption: str
    right: bool | None = None


def contact_sheet(tiles: Sequence[Tile], path: str | Path, title: str = "", *, columns: int = COLUMNS) -> None:
    """Writes a PNG of images in rows of eight, or `columns`, with a caption below each: green where right, red where wrong."""
    import cv2

    columns = min(columns, len(tiles))
    rows = math.ceil(len(tiles) / columns)
    top = 28 if title else GAP
    width, height = max(columns * (TILE + GAP) + GAP, 320), top + rows * (TILE + CAPTION + GAP)
    canvas = np.full((height, width, 3), int(PAPER[1:3], 16), np.uint8)
    figure = _figure(width / 100, height / 100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        y, x = top + row * (TILE + CAPTION + GAP), GAP + column * (TILE + GAP)
        scale = TILE / max(tile.image.shape[:2])
        h, w = (max(1, round(side * scale)) for side in tile.image.shape[:2])
        small = cv2.resize(tile.image, (w, h), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_NEAREST)
        down, across = y + (TILE - h) // 2, x + (TILE - w) // 2
        canvas[down : down + h, across : across + w] = small
        colour = INK if tile.right is None else RIGHT if tile.right else WRONG
        axes.text(x + TILE / 2, y + TILE + 3, tile.caption, color=colour, fontsize=8, ha="center", va="top", parse_math=False)
    if title:
        axes.text(GAP, 8, title, color=INK, fontsize=9, va="top", parse_math=False)
    axes.imshow(canvas, interpolation="nearest", extent=(0, width, height, 0), aspect="auto")
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    _save(figure, path)


def confusion_picture(counts: NDArray[np.integer], classes: Sequence[str], path: str | Path) -> None:
    """Writes a PNG of a confusion matrix (rows: true classes): shares of each row as shades, counts as numbers."""
    number = len(classes)
    side = min(max(3.2 + 0.34 * number, 4.5), 14.0)
    figure = _figure(side, side)
    axes = figure.add_subplot()
    axes.set_facecolor(PAPER)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="viridis", vmin=0, vmax=1)
    axes.set_xlabel("predicted", color=INK)
    axes.set_ylabel("true", color=INK)
    axes.tick_params(colors=INK, labelsize=8)
    if number <= MOST_NAMES:
        names = [shorten(name, 18) for name in classes]
        axes.set_xticks(range(number), names, rotation=90, parse_math=False)
        axes.set_yticks(range(number), names, parse_math=False)
    if number <= MOST_NUMBERS:
        for row, column in zip(*np.nonzero(counts), strict=True):
            shade = "#101214" if shares[row, column] > 0.6 else INK
            axes.text(column, row, str(counts[row, column]), color=shade, fontsize=7, ha="center", va="center")
    right, total = int(np.trace(counts)), int(counts.sum())
    axes.set_title(f"{right} of {total} right ({right / max(total, 1):.1%})", color=INK, fontsize=10)
    figure.tight_layout()
    _save(figure, path)


def caption(found: Sequence[int], scores: NDArray[np.floating], classes: Sequence[str], wanted: Sequence[int] | None = None) -> str:
    """What was found with its probability; below it what is right, where that is known and differs."""
    text = shorten(", ".join(classes[k] for k in found) or "none")
    if len(found) == 1:
        text += f" {scores[found[0]]:.0%}"
    if wanted is None or set(found) == set(wanted):
        return text
    return f"{text}\n({shorten(', '.join(classes[k] for k in wanted) or 'none')})"


def shorten(text: str, most: int = 16) -> str:
    """The text, cut to `most` characters with an ellipsis."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, facecolor=PAPER)
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Figure, path: str | Path) -> None:
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", facecolor=PAPER)
