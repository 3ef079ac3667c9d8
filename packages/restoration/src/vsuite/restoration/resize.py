"""Resizing pictures as MATLAB's `imresize` does, in the two conventions that benchmarks of super-resolution use.

A: mirrored at the edges (the edge pixel repeated), rounded once at the end. Current benchmarks and training use it.
B: clamped at the edges, rounded to whole numbers after the rows and again after the columns: MATLAB on 8-bit pictures, which
made the stored low-resolution files of the classic test sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError, unknown

Array = npt.NDArray[Any]
Convention = Literal["A", "B"]


def _cubic(x: Array) -> Array:
    """Keys' kernel with a = -0.5."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))


def _lanczos3(x: Array) -> Array:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


KERNELS: dict[str, tuple[Callable[[Array], Array], int]] = {"bicubic": (_cubic, 4), "lanczos": (_lanczos3, 6)}
"""Name -> kernel and its width in samples."""


def resize_weights(
    length: int, out_length: int, scale: float, *, kernel: str = "bicubic", antialias: bool = True, convention: Convention = "A"
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """What each output sample along one axis is made of.

    Args:
        length, out_length: samples before and after.
        scale: output sample j (from 0) sits at (j + 0.5) / scale - 0.5.
        antialias: widen the kernel where the axis shrinks.

    Returns:
        Indices of input samples and their weights, both (out_length, taps); each row of weights sums to 1.
    """
    if kernel not in KERNELS:
        raise unknown("resize kernel", kernel, KERNELS)
    function, width = KERNELS[kernel]
    stretch = min(scale, 1.0) if antialias else 1.0
    centre = (np.arange(out_length) + 0.5) / scale - 0.5
    first = np.floor(centre - width / stretch / 2).astype(np.int64)
    indices = first[:, None] + np.arange(math.ceil(width / stretch) + 2)
    weights = function((centre[:, None] - indices) * stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    used = (weights != 0).any(axis=0)
    indices, weights = indices[:, used], weights[:, used]
    if convention == "B":
        return indices.clip(0, length - 1), weights
    turn = indices % (2 * length)  # mirrored, as often as it takes
    return np.where(turn < length, turn, 2 * length - 1 - turn), weights


def imresize(
    image: Array,
    scale: float | None = None,
    *,
    size: tuple[int, int] | None = None,
    kernel: str = "bicubic",
    antialias: bool = True,
    convention: Convention = "A",
) -> Array:
    """Resizes a picture.

    Args:
        image: (H, W) or (H, W, C). Whole numbers (uint8, uint16) come out rounded and clipped to their range; floats come out as
            they are, which may be a little outside the range that went in.
        scale: of both sides; the output is ceil(side * scale). Exactly one of `scale` and `size` is given.
        size: height and width of the output.
        kernel: "bicubic" or "lanczos" (three lobes).
        antialias: widen the kernel where a side shrinks.
        convention: see the module; B is defined for whole numbers only.

    Raises:
        InputError: for an empty picture or output, and for floats in convention B.
    """
    if (scale is None) == (size is None):
        raise ValueError("give either scale or size")
    whole = np.issubdtype(image.dtype, np.integer)
    if convention == "B" and not whole:
        raise InputError("convention B resizes 8 or 16-bit pictures, not floats; use A")
    height, width = image.shape[:2]
    rows, columns = size or (math.ceil(height * scale), math.ceil(width * scale))
    if min(height, width, rows, columns) < 1:
        raise InputError(f"cannot resize {width} x {height} pixels to {columns} x {rows}")
    options: dict[str, Any] = {"kernel": kernel, "antialias": antialias, "convention": convention}
    result = image if image.dtype == np.float32 else image.astype(np.float64)
    for axis, (before, after) in enumerate(((height, rows), (width, columns))):
        result = weighted_sums(result, axis, *resize_weights(before, after, scale or after / before, **options))
        if convention == "B":
            result = np.floor(result + 0.5).clip(0, np.iinfo(image.dtype).max)
    return result.round().clip(0, np.iinfo(image.dtype).max).astype(image.dtype) if whole else result


def weighted_sums(image: Array, axis: int, indices: npt.NDArray[np.int64], weights: npt.NDArray[np.float64]) -> Array:
    """What `resize_weights` says, along an axis of floats; a tap at a time, so that memory stays at twice the output."""
    shape = [1] * image.ndim
    shape[axis] = -1
    result: Array | None = None
    for tap in range(indices.shape[1]):
        part = image.take(indices[:, tap], axis=axis)
        part *= weights[:, tap].astype(image.dtype).reshape(shape)
        result = part if result is None else np.add(result, part, out=result)
    assert result is not None
    return result


def crop_to_multiple(image: Array, scale: int) -> Array:
    """The top left part of a picture (H, W, ...) whose sides are multiples of the scale, as benchmarks crop."""
    height, width = image.shape[:2]
    return image[: height - height % scale, : width - width % scale]
