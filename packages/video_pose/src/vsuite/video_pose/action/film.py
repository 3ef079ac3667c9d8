"""The square of a picture that people are in, cut from the frames of a film."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PADDING = 1.25  # side of the square over that of the people's box


def square_of(joints: NDArray[np.floating], scores: NDArray[np.floating], image_shape: tuple[int, int]) -> tuple[float, float, float]:
    """Corner x, y and side of the square around everyone in a clip; around the whole picture where there is no one.

    joints: M, T, J, 2 in pixels; scores: M, T, J. The middle of the first pixel is 0, so its corner is at -0.5.
    """
    there = scores > 0
    if there.any():
        low, high = joints[there].min(0), joints[there].max(0)
        side = max(float((high - low).max()) * PADDING, 2.0)
    else:
        low, high = np.full(2, -0.5), np.array(image_shape[::-1]) - 0.5
        side = float((high - low).max())
    x, y = (low + high - side) / 2
    return float(x), float(y), side


def drawn_square(square: tuple[float, float, float], least_area: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """A random square inside a square, of at least this share of its area."""
    x, y, side = square
    smaller = side * float(np.sqrt(rng.uniform(least_area, 1)))
    return x + rng.uniform(0, side - smaller), y + rng.uniform(0, side - smaller), smaller


def cut(
    pictures: NDArray[np.uint8], joints: NDArray[np.floating], square: tuple[float, float, float], size: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Pictures and joints under one crop: T, H, W, 3 -> T, 3, size, size in [0, 1], black beyond the edges; joints in its pixels."""
    import cv2

    x, y, side = square
    scale = size / side
    corner = np.array([x, y], np.float32)
    # The middle of a pixel is a whole number on both sides, so edges lie at halves.
    move = np.array([[scale, 0, -scale * x - 0.5], [0, scale, -scale * y - 0.5]], np.float64)
    resized = np.stack([cv2.warpAffine(picture, move, (size, size), flags=cv2.INTER_LINEAR) for picture in pictures])
    clip = resized.transpose(0, 3, 1, 2).astype(np.float32) / np.float32(255)
    return clip, ((joints.astype(np.float32) - corner) * scale - 0.5).astype(np.float32)
