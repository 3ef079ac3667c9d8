"""Metrics of video prediction as OpenSTL defines them, on arrays B, T, C, H, W."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

Frames = NDArray[np.floating]

SSIM_WINDOW = 7
OPENSTL_RANGE = 2.0  # OpenSTL's frames span 0 to 1, but its SSIM takes them to span -1 to 1, which raises the values


def _pair(prediction: Frames, truth: Frames) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if prediction.shape != truth.shape or prediction.ndim != 5 or prediction.size == 0:
        raise InputError(f"predicted and true frames must be B, T, C, H, W of one shape; got {prediction.shape} and {truth.shape}")
    return prediction.astype(np.float64), truth.astype(np.float64)


def mse(prediction: Frames, truth: Frames, *, per_value: bool = False) -> float:
    """Mean over clips and frames of the squared error summed over a frame's values; `per_value`: of its mean, as for WeatherBench."""
    p, t = _pair(prediction, truth)
    error = float(((p - t) ** 2).mean(axis=(0, 1)).sum())
    return error / p[0, 0].size if per_value else error


def mae(prediction: Frames, truth: Frames, *, per_value: bool = False) -> float:
    """As `mse`, of the absolute error."""
    p, t = _pair(prediction, truth)
    error = float(np.abs(p - t).mean(axis=(0, 1)).sum())
    return error / p[0, 0].size if per_value else error


def rmse(prediction: Frames, truth: Frames, *, per_value: bool = False) -> float:
    """Square root of `mse`."""
    return float(np.sqrt(mse(prediction, truth, per_value=per_value)))


def psnr(prediction: Frames, truth: Frames) -> float:
    """Mean over frames of -10 log10 of the mean squared error, in dB, for values in [0, 1]; predictions are clipped to that."""
    p, t = _pair(prediction, truth)
    error = ((p.clip(0, 1) - t) ** 2).mean(axis=(2, 3, 4))
    with np.errstate(divide="ignore"):
        return float((-10 * np.log10(error)).mean())


def snr(prediction: Frames, truth: Frames) -> float:
    """Mean over frames of 10 log10 of the truth's power over the error's, in dB; predictions are clipped to [0, 1]."""
    p, t = _pair(prediction, truth)
    noise, signal = ((p.clip(0, 1) - t) ** 2).mean(axis=(2, 3, 4)), (t**2).mean(axis=(2, 3, 4))
    with np.errstate(divide="ignore"):
        return float((10 * np.log10(signal / noise)).mean())


def ssim(prediction: Frames, truth: Frames, *, value_range: float = OPENSTL_RANGE) -> float:
    """Mean structural similarity over frames and channels: windows of 7 x 7, sample covariance, K1 0.01, K2 0.03.

    Args:
        prediction: is clipped to [0, 1].
        value_range: 2 is OpenSTL's, for comparison with published figures; 1 is what values in [0, 1] span.

    Raises:
        InputError: for frames smaller than the window.
    """
    from scipy.ndimage import uniform_filter

    p, t = _pair(prediction, truth)
    if min(p.shape[-2:]) < SSIM_WINDOW:
        raise InputError(f"SSIM needs frames of {SSIM_WINDOW} x {SSIM_WINDOW} or more; got {p.shape[-2]} x {p.shape[-1]}")
    p = p.clip(0, 1)

    def local_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
        half = SSIM_WINDOW // 2
        return uniform_filter(values, size=(1, 1, 1, SSIM_WINDOW, SSIM_WINDOW))[..., half:-half, half:-half]

    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    mean_p, mean_t = local_mean(p), local_mean(t)
    var_p, var_t = sample * (local_mean(p * p) - mean_p**2), sample * (local_mean(t * t) - mean_t**2)
    covariance = sample * (local_mean(p * t) - mean_p * mean_t)
    c1, c2 = (0.01 * value_range) ** 2, (0.03 * value_range) ** 2
    similarity = (2 * mean_p * mean_t + c1) * (2 * covariance + c2) / ((mean_p**2 + mean_t**2 + c1) * (var_p + var_t + c2))
    return float(similarity.mean())


def openstl_metrics(prediction: Frames, truth: Frames) -> dict[str, float]:
    """MSE, MAE, RMSE, SSIM and PSNR in OpenSTL's definitions, and SSIM with the range that the values have."""
    found: Mapping[str, float] = {
        "mse": mse(prediction, truth),
        "mae": mae(prediction, truth),
        "rmse": rmse(prediction, truth),
        "ssim": ssim(prediction, truth),
        "ssim_range1": ssim(prediction, truth, value_range=1.0),
        "psnr": psnr(prediction, truth),
    }
    return dict(found)


def weather_metrics(prediction: Frames, truth: Frames, *, mean: float, std: float) -> dict[str, float]:
    """MSE, MAE and RMSE a grid point, in the units of the data: both arrays are standardised by `mean` and `std`, which is undone."""
    p, t = prediction * std + mean, truth * std + mean
    return {"mse": mse(p, t, per_value=True), "mae": mae(p, t, per_value=True), "rmse": rmse(p, t, per_value=True)}
