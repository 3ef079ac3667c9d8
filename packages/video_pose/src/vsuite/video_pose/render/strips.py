"""Pictures of predicted videos: strips of frames in rows, and animations of them side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.video_pose.render.writer import Frame, film_writer

Frames = NDArray[np.floating]

LEAST_SIDE = 96  # pixels; smaller frames are shown enlarged, as squares
GAP, LABEL = 4, 92
GROUND, TEXT, MARK = (16, 18, 22), (200, 205, 214), (79, 140, 255)


def write_strip(
    path: str | Path,
    observed: Frames,
    predicted: Frames,
    truth: Frames | None = None,
) -> Path:
    """Writes rows of frames as a PNG: what was observed, what came (where that is known), what was predicted, and the absolute error.

    Black and white are the least and the greatest of what was real (0 and 1 for pictures); an error of half of that is brightest.

    Args:
        observed: (T, C, H, W); of 3 channels as colours, of any other number the first channel is shown.
        predicted, truth: (T', C, H, W).

    Raises:
        InputError: for frames of different shapes.
    """
    from PIL import Image

    low, high = _limits(observed, predicted, truth)
    rows = {"observed": _shown(observed, low, high)}
    if truth is not None:
        rows["truth"] = _shown(truth, low, high)
    rows["prediction"] = _shown(predicted, low, high)
    if truth is not None:
        rows["error"] = _errors(predicted - truth, (high - low) / 2)
    with atomic_path(path) as temporary:
        Image.fromarray(_sheet(rows)).save(temporary, "PNG")
    return Path(path)


def write_animation(
    path: str | Path,
    observed: Frames,
    predicted: Frames,
    truth: Frames | None = None,
    *,
    fps: float = 5.0,
) -> Path:
    """Writes the observed frames and then the predicted ones as a GIF (or .mp4), with the truth on the left where it is known.

    A blue frame marks what is predicted. Arguments as in `write_strip`.
    """
    low, high = _limits(observed, predicted, truth)
    whole = {"prediction": np.concatenate([_shown(observed, low, high), _shown(predicted, low, high)])}
    if truth is not None:
        whole = {"truth": np.concatenate([_shown(observed, low, high), _shown(truth, low, high)])} | whole
    height, width = (side + side % 2 for side in _panel(whole, 0, len(observed)).shape[:2])
    with film_writer(path, fps, (width, height)) as write:
        for number in range(len(whole["prediction"])):
            canvas = np.full((height, width, 3), GROUND, np.uint8)
            panel = _panel(whole, number, len(observed))
            canvas[: panel.shape[0], : panel.shape[1]] = panel
            write(canvas)
    return Path(path)


def _limits(observed: Frames, predicted: Frames, truth: Frames | None) -> tuple[float, float]:
    for frames in (observed, predicted, *(() if truth is None else (truth,))):
        if frames.ndim != 4 or frames.shape[1:] != observed.shape[1:] or not frames.size:
            raise InputError(f"frames to show are T, C, H, W of one C, H, W; got {observed.shape} and {frames.shape}")
    if truth is not None and truth.shape != predicted.shape:
        raise InputError(f"there must be as many true frames as predicted ones; got {len(truth)} and {len(predicted)}")
    real = observed if truth is None else np.concatenate([observed, truth])
    low, high = float(real.min()), float(real.max())
    if low >= 0 and high <= 1:
        return 0.0, 1.0  # pictures, where black and white mean something
    return low, high if high > low else low + 1.0


def _shown(frames: Frames, low: float, high: float) -> NDArray[np.uint8]:
    """T, C, H, W -> T, H', W', 3, enlarged to `LEAST_SIDE`."""
    values = ((frames - low) / (high - low)).clip(0, 1)
    colours = values if values.shape[1] == 3 else np.repeat(values[:, :1], 3, axis=1)
    return _enlarged((colours.transpose(0, 2, 3, 1) * 255).round().astype(np.uint8))


def _errors(differences: Frames, limit: float) -> NDArray[np.uint8]:
    import cv2

    sizes = (np.abs(differences).mean(axis=1) / limit).clip(0, 1)
    coloured = [cv2.applyColorMap((size * 255).round().astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1] for size in sizes]
    return _enlarged(np.stack(coloured))


def _enlarged(pictures: NDArray[np.uint8]) -> NDArray[np.uint8]:
    times = max(1, -(-LEAST_SIDE // max(pictures.shape[1:3])))
    return pictures.repeat(times, axis=1).repeat(times, axis=2)


def _sheet(rows: Mapping[str, NDArray[np.uint8]]) -> Frame:
    height, width = next(iter(rows.values())).shape[1:3]
    columns = max(map(len, rows.values()))
    canvas = np.full((GAP + len(rows) * (height + GAP), LABEL + columns * (width + GAP), 3), GROUND, np.uint8)
    for row, (name, pictures) in enumerate(rows.items()):
        top = GAP + row * (height + GAP)
        _write(canvas, name, (8, top + height // 2 + 4))
        for column, picture in enumerate(pictures):
            left = LABEL + column * (width + GAP)
            canvas[top : top + height, left : left + width] = picture
    return canvas


def _panel(whole: Mapping[str, NDArray[np.uint8]], number: int, observed: int) -> Frame:
    """One frame of the animation: all sequences side by side, under their names."""
    pictures = []
    for name, frames in whole.items():
        picture = np.pad(frames[number], ((24, GAP), (GAP, GAP), (0, 0)))
        picture[:24], picture[-GAP:], picture[:, :GAP], picture[:, -GAP:] = GROUND, GROUND, GROUND, GROUND
        later = number >= observed
        if later and name == "prediction":
            picture[22:24, 2:-2] = picture[-4:-2, 2:-2] = MARK
            picture[22:-2, 2:4] = picture[22:-2, -4:-2] = MARK
        _write(picture, f"{name if later else 'observed'} {number + 1}", (GAP, 16))
        pictures.append(picture)
    return np.concatenate(pictures, axis=1)


def _write(canvas: Frame, text: str, place: tuple[int, int]) -> None:
    import cv2

    cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, TEXT, 1, cv2.LINE_AA)
