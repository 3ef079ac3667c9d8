"""Pictures of digits for Moving MNIST: from the user's own files, or drawn."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError
from vsuite.video_pose.data.arrays import names_of, read_npz

SIDE = 28
IDX_OF_BYTES = b"\x00\x00\x08\x03"  # the first bytes of an idx file that holds pictures of bytes


def read_digits(path: str | Path) -> NDArray[np.uint8]:
    """Pictures of digits, N, 28, 28, white on black.

    Args:
        path: an idx file such as `train-images-idx3-ubyte`, or its `.gz`; or a `.npz` that holds them as `digits`, `images` or `x_train`.

    Raises:
        InputError: for files that cannot be read, and pictures of another shape or type.
    """
    path = Path(path)
    try:
        if path.suffix == ".npz":
            there = names_of(path)
            name = next((name for name in ("digits", "images", "x_train") if name in there), None)
            if name is None:
                raise InputError(f"{path}: has none of digits, images and x_train; it has {', '.join(there) or 'nothing'}")
            digits = read_npz(path, name)[name]
        else:
            digits = _read_idx(path)
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if digits.dtype != np.uint8 or digits.ndim != 3 or not len(digits) or digits.shape[1] != digits.shape[2]:
        raise InputError(f"{path}: digits are N, {SIDE}, {SIDE} bytes; got {digits.shape} {digits.dtype}")
    return digits


def _read_idx(path: Path) -> NDArray[np.uint8]:
    content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    if content[:4] != IDX_OF_BYTES or len(content) < 16:
        raise InputError(f"{path}: is no idx file of pictures")
    count, height, width = (int(size) for size in np.frombuffer(content, ">i4", 3, 4))
    if len(content) != 16 + count * height * width:
        raise InputError(f"{path}: should hold {count} pictures of {height} x {width}, and holds {len(content) - 16} bytes")
    return np.frombuffer(content, np.uint8, offset=16).reshape(count, height, width)


def draw_digits(count: int, seed: int = 0) -> NDArray[np.uint8]:
    """Digits in opencv's fonts, of varying width, weight, slant and turn: count, 28, 28, white on black. A stand-in for MNIST's."""
    import cv2

    rng, digits = np.random.default_rng(seed), np.zeros((count, SIDE, SIDE), np.uint8)
    fonts = (cv2.FONT_HERSHEY_SIMPLEX, cv2.FONT_HERSHEY_DUPLEX, cv2.FONT_HERSHEY_COMPLEX, cv2.FONT_HERSHEY_TRIPLEX)
    large = 4 * SIDE  # drawn large and reduced, so that edges are smooth
    for picture in digits:
        canvas = np.zeros((large, large), np.uint8)
        text, font, weight = str(rng.integers(10)), fonts[rng.integers(len(fonts))], int(rng.integers(6, 12))
        (width, height), _ = cv2.getTextSize(text, font, 3.0, weight)
        cv2.putText(canvas, text, ((large - width) // 2, (large + height) // 2), font, 3.0, 255, weight, cv2.LINE_AA)
        slant, turn, stretch = rng.uniform(-0.3, 0.3), rng.uniform(-0.25, 0.25), rng.uniform(0.85, 1.2)
        turned = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ np.array([[stretch, slant], [0, 1]])
        middle = np.full(2, large / 2)
        move = np.concatenate([turned, (middle - turned @ middle)[:, None]], axis=1)
        turned_canvas = cv2.warpAffine(canvas, move, (large, large), flags=cv2.INTER_LINEAR)
        picture[:] = cv2.resize(turned_canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    return digits
