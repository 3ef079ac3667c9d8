"""What weights of video prediction say about what goes in and out."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from vsuite.core.errors import InputError
from vsuite.video_pose.forecast.settings import YEARS, Colours, Layout, Years

MOST = 4.0  # pictures lie in [0, 1], predicted ones a little beyond; higher are the values of bytes in another type

MOST = 4.0  # pictures lie in [0, 1], predicted ones a little beyond; higher are the values of bytes in another type


class Note(BaseModel):
    """The input of a model, and the unit of its output.

    Attributes:
        layout, colours, stride, digits, variable, years: see `ForecastSettings`; what the model has learnt from.
        frames: that it takes, and gives. channels, height, width: of each.
        mean, std: what is subtracted from values, and what they are then divided by.
    """

    model_config = ConfigDict(extra="forbid")

    task: Literal["forecast"] = "forecast"
    layout: Layout
    colours: Colours = "grey"
    stride: int = Field(default=1, ge=1)
    digits: int = Field(default=2, ge=1)
    variable: str = "t2m"
    years: Years = YEARS
    frames: int = Field(ge=1)
    channels: int = Field(ge=1)
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    mean: float = 0.0
    std: float = Field(default=1.0, gt=0)

    @property
    def frame(self) -> tuple[int, int, int]:
        """Shape of a frame."""
        return self.channels, self.height, self.width

    def check(self, frames: NDArray[np.floating], source: object) -> None:
        """Raises `InputError` unless frames (..., T, C, H, W) are of the shape and in the range that the model takes, and T is enough."""
        if frames.shape[-3:] != self.frame:
            raise InputError(
                f"{source}: frames must be {_sizes(self.frame)}, channels first, for this model; got {_sizes(frames.shape[-3:])}"
            )
        if self.layout in ("moving_mnist", "videos") and frames.size and np.abs(frames).max() > MOST:
            raise InputError(f"{source}: pictures must be bytes, or lie in [0, 1]; their values reach {np.abs(frames).max():g}")
        if frames.shape[-4] < self.frames:
            raise InputError(f"{source}: has {frames.shape[-4]} frames; this model observes {self.frames}")

    def normalise(self, frames: NDArray[np.floating]) -> NDArray[np.float32]:
        """Values as the network reads them."""
        return (frames.astype(np.float32) - np.float32(self.mean)) / np.float32(self.std)

    def restore(self, frames: NDArray[np.floating]) -> NDArray[np.float32]:
        """Values as the data have them."""
        return frames.astype(np.float32) * np.float32(self.std) + np.float32(self.mean)


def _sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
