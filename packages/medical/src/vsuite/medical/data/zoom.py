"""Slices at another size, as TransUNet and its successors bring them to the network's and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

FloatArray = NDArray[np.floating]


def zoom_slice(image: FloatArray, size: Sequence[int]) -> FloatArray:
    """A slice H, W at another size, by cubic splines with the corners kept; as it is where the size is the same."""
    if image.shape == tuple(size):
        return image
    return ndimage.zoom(image, [new / old for new, old in zip(size, image.shape, strict=True)], order=3)


def zoom_labels(labels: NDArray[np.integer], size: Sequence[int]) -> NDArray[np.integer]:
    """Label maps D, H, W with slices of another size: the nearest pixel, the corners kept."""
    if labels.shape[1:] == tuple(size):
        return labels
    return ndimage.zoom(labels, [1, *(new / old for new, old in zip(size, labels.shape[1:], strict=True))], order=0)
