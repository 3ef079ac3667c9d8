"""PSNR and SSIM as benchmarks of super-resolution define them, and the colour conversion they rest on."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError
from vsuite.core.evaluation import Metric, register_metric

Array = npt.NDArray[Any]

# BT.601, studio range, as MATLAB's rgb2ycbcr has it; for RGB in 0..1 the result is in 0..255.
_TO_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]])
_OFFSET = np.array([16.0, 128.0, 128.0])


def _converted(image: Array, matrix: Array, offset: Array | float) -> Array:
    if image.dtype == np.uint8:
        return (image.astype(np.float64) / 255 @ matrix.T + offset).round().clip(0, 255).astype(np.uint8)
    return (image @ matrix.T.astype(image.dtype) + np.asarray(offset, image.dtype)) / image.dtype.type(255)


def rgb_to_ycbcr(image: Array) -> Array:
    """Y, Cb, Cr of RGB (..., 3): uint8 gives rounded uint8, floats in [0, 1] give floats (Y in 16/255..235/255)."""
    return _converted(image, _TO_YCBCR, _OFFSET)


def rgb_to_y(image: Array) -> Array:
    """Y alone, (...), of RGB (..., 3); see `rgb_to_ycbcr`."""
    return _converted(image, _TO_YCBCR[0], _OFFSET[0])


def ycbcr_to_rgb(image: Array) -> Array:
    """The way back from `rgb_to_ycbcr`, for floats."""
    return (image * 255 - _OFFSET) @ np.linalg.inv(_TO_YCBCR).T


def psnr(a: Array, b: Array) -> float:
    """Peak signal-to-noise ratio in dB of two arrays of one shape in 0..255; infinite where they are equal."""
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2)
    return math.inf if error == 0 else float(10 * np.log10(255.0**2 / error))


def ssim(a: Array, b: Array) -> float:
    """Structural similarity of two pictures (H, W) or (H, W, C) in 0..255: the mean over the map and the channels.

    Gaussian window of 11 x 11 with sigma 1.5, where it fits entirely; not a number where it fits nowhere.
    """
    if min(a.shape[:2]) < 11:
        return math.nan
    x, y = (np.atleast_3d(image).astype(np.float64) for image in (a, b))
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_x, mean_y = _blurred(x), _blurred(y)
    variances = _blurred(x * x) - mean_x**2 + _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    similarity = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) / ((mean_x**2 + mean_y**2 + c1) * (variances + c2))
    return float(similarity.mean())


def _blurred(image: Array) -> Array:
    window = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window /= window.sum()
    height, width = image.shape[0] - 10, image.shape[1] - 10
    image = sum(weight * image[start : start + height] for start, weight in enumerate(window))
    image = sum(weight * image[:, start : start + width] for start, weight in enumerate(window))
    return image


@register_metric("psnr_ssim")
class PsnrSsim(Metric):
    """PSNR and SSIM of 8-bit pictures, in columns such as "psnr_y" and "ssim_rgb".

    Args:
        crop: pixels left out along each side; benchmarks take the scale.
        channels: "y", "rgb" or "both". A grey picture (H, W) is measured as it is, under either name.
        round_y: round Y to whole numbers first, as the classic MATLAB scripts do; current benchmarks do not.
    """

    def __init__(self, crop: int, *, channels: Literal["y", "rgb", "both"] = "both", round_y: bool = False) -> None:
        self.crop, self.channels, self.round_y = crop, channels, round_y

    def measure(self, *, prediction: Array, reference: Array, **_: Any) -> dict[str, float]:
        """Scores of two pictures (H, W) or (H, W, 3), uint8.

        Raises:
            InputError: where the sizes differ, or nothing is left after the crop.
        """
        if prediction.shape != reference.shape:
            raise InputError(f"sizes differ: {describe_size(prediction)} against {describe_size(reference)} of the reference")
        if min(reference.shape[:2]) <= 2 * self.crop:
            raise InputError(f"{describe_size(reference)} leaves nothing after a crop of {self.crop}")
        inside = slice(self.crop, -self.crop or None)
        a, b = prediction[inside, inside], reference[inside, inside]
        scores: dict[str, float] = {}
        if self.channels != "rgb":
            y_a, y_b = self._y(a), self._y(b)
            scores |= {"psnr_y": psnr(y_a, y_b), "ssim_y": ssim(y_a, y_b)}
        if self.channels != "y":
            scores |= {"psnr_rgb": psnr(a, b), "ssim_rgb": ssim(a, b)}
        return scores

    def _y(self, image: Array) -> Array:
        if image.ndim == 2:
            return image
        return rgb_to_y(image) if self.round_y else rgb_to_y(image.astype(np.float64) / 255) * 255

    def convention(self) -> str:
        """How the figures are computed, for people."""
        rounded = "" if self.channels == "rgb" else f", Y (BT.601 studio range) {'rounded' if self.round_y else 'not rounded'}"
        return f"8-bit pictures, crop {self.crop}{rounded}"


def describe_size(image: Array) -> str:
    """Width, height and channels of a picture (H, W) or (H, W, C), for people."""
    return f"{image.shape[1]} x {image.shape[0]}" + ("" if image.ndim == 2 else f" x {image.shape[2]}")
