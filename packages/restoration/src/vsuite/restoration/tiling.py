"""Large pictures in tiles: bounded memory, no seams, smaller tiles where the memory does not suffice."""

from __future__ import annotations

import gc
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError

Array = npt.NDArray[np.float32]
Process = Callable[[npt.NDArray[Any]], Array]
"""A part of the picture (h, w, C), in its own number type -> (scale * h, scale * w, C'), float32."""

Progress = Callable[[int, int], None]
"""Told the number of tiles that are done, and of all; what it raises ends the work."""

FEATHER = 8  # input pixels on each side of a seam over which two tiles fade into each other


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Each tile is processed with `overlap` pixels of its surroundings, which are thrown away. What is left of neighbours overlaps by
    2 * `FEATHER` pixels, over which one fades into the other: where both say the same, that is the result to the last bit.

    Attributes:
        tile: side of the part of the output, in input pixels, that one tile is responsible for. Pictures up to `tile` plus the
            surroundings on each side are not cut at all.
        overlap: pixels of context; no seam shows while it is more than the process looks around itself. Windowed transformers: 32.
        multiple: tiles start at multiples of it, so that the windows of a transformer lie as they would in the whole picture.
        wrap: the picture is a texture whose opposite sides touch: context is taken from there.
    """

    tile: int
    overlap: int = 32
    multiple: int = 1
    wrap: bool = False

    def __post_init__(self) -> None:
        if self.tile < 1:
            raise InputError(f"the tile must be 1 pixel or more; got {self.tile}")
        if self.overlap < 0:
            raise InputError(f"the overlap must be 0 pixels or more; got {self.overlap}")


@dataclass(frozen=True)
class Span:
    """One axis of a tile, in input pixels.

    Attributes:
        start, stop: what it yields, fading included. before, after: how much of that fades, at either end.
        first, last: what is processed; beyond the picture where it wraps around.
    """

    start: int
    stop: int
    before: int
    after: int
    first: int
    last: int


def plan_spans(length: int, tiling: Tiling, *, begin: int = 0, fading: int = 0) -> list[Span]:
    """Cuts an axis from `begin` on into the fewest parts of at most `tile`, as equal as can be; the first fades in over 2 * `fading`."""
    around = tiling.overlap + FEATHER
    whole = begin == 0 and length <= tiling.tile + 2 * around
    count = 1 if whole else math.ceil((length - begin) / tiling.tile)
    edges = [begin + (length - begin) * i // count for i in range(count + 1)]
    feather = min([FEATHER, *((b - a) // 2 for a, b in itertools.pairwise(edges))])
    spans = []
    for a, b in itertools.pairwise(edges):
        before, after = (feather if a > begin else fading), (feather if b < length else 0)
        start, stop = a - before, b + after
        first, last = start - tiling.overlap, stop + tiling.overlap
        first -= first % tiling.multiple
        last += -last % tiling.multiple
        if not tiling.wrap:
            first, last = max(first, 0), min(last, length)
        spans.append(Span(start, stop, 2 * before, 2 * after, first, last))
    return spans


def tiled(
    picture: npt.NDArray[Any], process: Process, scale: int, tiling: Tiling, *, progress: Progress = lambda done, total: None
) -> Iterator[Array]:
    """The processed picture in strips from top to bottom, one a row of tiles, (n, scale * W, C').

    Beside the input, one row of tiles of the output is held. Where a tile does not fit into memory, tiles of half the side are
    used from that row on.

    Args:
        picture: (H, W, C).
        process: see `Process`. Of a convolutional one that looks no further than the overlap, the result does not depend on the tiles.
        scale: of `process`.

    Raises:
        InputError: where not even the smallest tile fits into memory.
    """
    height, width = picture.shape[:2]
    y, done, fading = 0, 0, 0
    carried: Array | None = None  # the last rows of the strip before, which fade into this one
    while y < height:
        try:
            rows, columns = plan_spans(height, tiling, begin=y, fading=fading), plan_spans(width, tiling)
            total = done + len(rows) * len(columns)
            strip, count = None, 0
            for column in columns:
                part = _processed(picture, process, scale, rows[0], column)
                strip = np.empty((len(part), width * scale, part.shape[2]), np.float32) if strip is None else strip
                _lay(strip, part, column.start * scale, column.before * scale)
                count += 1
                progress(done + count, total)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            tiling = _smaller(tiling, error)
            strip = None
        if strip is None:
            _free_memory()
            continue
        done += count
        row = rows[0]
        if carried is not None:
            strip[: len(carried)] = _faded(carried, strip[: len(carried)], axis=0)
        fading, held = row.after // 2, row.after * scale
        y = row.stop - fading
        carried = strip[len(strip) - held :].copy() if held else None
        yield strip[: len(strip) - held]


def _processed(picture: npt.NDArray[Any], process: Process, scale: int, row: Span, column: Span) -> Array:
    """One tile without its surroundings."""
    height, width = picture.shape[:2]
    if row.first < 0 or row.last > height or column.first < 0 or column.last > width:
        rows, columns = np.arange(row.first, row.last) % height, np.arange(column.first, column.last) % width
        part = picture[rows[:, None], columns]
    else:
        part = picture[row.first : row.last, column.first : column.last]
    found = process(part)
    y, x = (row.start - row.first) * scale, (column.start - column.first) * scale
    return found[y : y + (row.stop - row.start) * scale, x : x + (column.stop - column.start) * scale]


def _lay(strip: Array, part: Array, start: int, fading: int) -> None:
    """Puts a tile into the strip; its first columns fade in over what is there."""
    if fading:
        part = part.copy()
        part[:, :fading] = _faded(strip[:, start : start + fading], part[:, :fading], axis=1)
    strip[:, start : start + part.shape[1]] = part


def _faded(old: Array, new: Array, *, axis: int) -> Array:
    """From old to new along an axis; exactly either of them where they are equal."""
    length = old.shape[axis]
    shape = [1, 1, 1]
    shape[axis] = length
    share = ((np.arange(length, dtype=np.float32) + 0.5) / length).reshape(shape)
    return old + share * (new - old)


def _smaller(tiling: Tiling, error: Exception) -> Tiling:
    tile = tiling.tile // 2
    if tile < max(tiling.multiple, 2 * FEATHER):
        what = " ".join(str(error).split())[:120]
        raise InputError(f"out of memory even with tiles of {tiling.tile} pixels: {what}") from error
    return Tiling(tile, tiling.overlap, tiling.multiple, tiling.wrap)


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch or numpy says that memory did not suffice, on any device."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "not enough memory" in text or "can't allocate memory" in text


def _free_memory() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
