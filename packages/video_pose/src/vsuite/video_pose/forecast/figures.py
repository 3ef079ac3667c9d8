"""OpenSTL's figures of predicted clips, gathered batch by batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from vsuite.video_pose.forecast.note import Note
from vsuite.video_pose.metrics.forecast import SSIM_WINDOW, mae, mse, psnr, ssim

DEFINITIONS = {
    "mse": "squared error summed over a frame, mean over frames and clips (OpenSTL)",
    "mae": "absolute error summed over a frame, mean over frames and clips (OpenSTL)",
    "rmse": "square root of mse (OpenSTL)",
    "ssim": "structural similarity with the range 2 of OpenSTL, which raises it; compare with published figures",
    "ssim_range1": "structural similarity with the range 1 that the values have",
    "psnr": "-10 log10 of a frame's mean squared error, mean over frames, dB",
}
WEATHER = {
    "mse": "squared error a grid point, in the data's unit squared (OpenSTL)",
    "mae": "absolute error a grid point, in the data's unit (OpenSTL)",
    "rmse": "square root of mse (OpenSTL)",
}


class Figures:
    """Means over clips.

    Weather is measured a grid point and in its own unit; all else a frame, as the network sees it, with SSIM and PSNR.
    """

    def __init__(self, note: Note) -> None:
        self.note = note
        self.weather = note.layout == "weatherbench"
        self.definitions = dict(WEATHER if self.weather else DEFINITIONS)
        if min(note.height, note.width) < SSIM_WINDOW:
            self.definitions = {name: text for name, text in self.definitions.items() if not name.startswith("ssim")}
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> None:
        """Frames as the network gives them: B, T, C, H, W."""
        for name, value in self._of(predicted, truth).items():
            self.sums[name] = self.sums.get(name, 0.0) + value * len(predicted)
        self.count += len(predicted)

    def means(self) -> dict[str, float]:
        """All figures, by name, in the order of `definitions`."""
        means = {name: value / self.count for name, value in self.sums.items()}
        means["rmse"] = float(np.sqrt(means["mse"]))  # of the mean, as OpenSTL has it, not the mean of roots
        return {name: means[name] for name in self.definitions}

    def _of(self, predicted: NDArray[np.floating], truth: NDArray[np.floating]) -> dict[str, float]:
        if self.weather:
            predicted, truth = self.note.restore(predicted), self.note.restore(truth)
            return {"mse": mse(predicted, truth, per_value=True), "mae": mae(predicted, truth, per_value=True)}
        found = {"mse": mse(predicted, truth), "mae": mae(predicted, truth), "psnr": psnr(predicted, truth)}
        if "ssim" in self.definitions:
            found |= {"ssim": ssim(predicted, truth), "ssim_range1": ssim(predicted, truth, value_range=1.0)}
        return found
