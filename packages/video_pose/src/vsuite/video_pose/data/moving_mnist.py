"""Moving MNIST: clips of digits that bounce off the frame's borders, made from given pictures of digits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

SIDE = 64
STEP = 0.1


def trajectory(x: float, y: float, angle: float, frames: int = 20, room: int = SIDE - 28) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where a digit is: the top and the left pixel of each frame.

    Args:
        x, y: start in [0, 1], in units of the room that the digit has. It moves before the first frame.
        angle: of the motion, in radians.
        room: pixels between the first and the last place.
    """
    position, velocity = np.array([x, y]), np.array([np.cos(angle), np.sin(angle)])
    places = np.empty((frames, 2), np.int64)
    for frame in range(frames):
        position = position + STEP * velocity
        velocity = np.where((position <= 0) | (position >= 1), np.where(position <= 0, 1, -1) * np.abs(velocity), velocity)
        position = position.clip(0, 1)
        places[frame] = (room * position).astype(np.int64)
    return places[:, 1], places[:, 0]


def make_clip(digits: NDArray[np.uint8], rng: np.random.Generator, *, frames: int = 20, num_digits: int = 2) -> NDArray[np.uint8]:
    """One clip of digits drawn from `digits` (N, 28, 28), laid over each other by maximum: frames, 64, 64.

    Raises:
        InputError: for digits of another shape, or too large for the frame.
    """
    if digits.ndim != 3 or not len(digits) or max(digits.shape[1:]) > SIDE or digits.shape[1] != digits.shape[2]:
        raise InputError(f"digits must be N, 28, 28 (any square side up to {SIDE}); got {digits.shape}")
    side = digits.shape[1]
    clip = np.zeros((frames, SIDE, SIDE), digits.dtype)
    for _ in range(num_digits):
        x, y, turn = rng.random(3)
        tops, lefts = trajectory(x, y, 2 * np.pi * turn, frames, SIDE - side)
        digit = digits[rng.integers(len(digits))]
        for frame, top, left in zip(clip, tops, lefts, strict=True):
            place = frame[top : top + side, left : left + side]
            np.maximum(place, digit, out=place)
    return clip
