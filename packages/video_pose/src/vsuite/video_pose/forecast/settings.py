"""How videos become training samples."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Layout = Literal["moving_mnist", "taxibj", "weatherbench", "clips", "videos"]
Colours = Literal["grey", "rgb", "bgr"]
Years = dict[Literal["train", "val", "test"], tuple[int, int]]

YEARS: Years = {"train": (2010, 2015), "val": (2016, 2016), "test": (2017, 2018)}  # WeatherBench's own


class ForecastSettings(BaseModel):
    """How videos become training samples.

    Attributes:
        layout: of the data: "moving_mnist" (clips made from digits), "taxibj" (`dataset.npz`), "weatherbench" (a file a year),
            "clips" (an array of clips) or "videos" (video files, or folders of pictures); None finds out.
        frames: observed, and as many to predict.
        stride: from one frame of a clip to the next, in frames of the video. hop: from the start of one clip to that of the next.
        size: (height, width) to which the frames of videos are brought; None leaves them as they are, all of one size.
        colours: of videos: "grey", "rgb" or "bgr" (what the published weights for Human3.6M read).
        clips, digits: of Moving MNIST: clips an epoch, and digits in each.
        variable: of WeatherBench, as the files call it. years: first and last year of "train", "val" and "test" there.
    """

    model_config = ConfigDict(extra="forbid")

    layout: Layout | None = None
    frames: int = Field(default=10, ge=1)
    stride: int = Field(default=1, ge=1)
    hop: int = Field(default=1, ge=1)
    size: tuple[int, int] | None = None
    colours: Colours = "grey"
    clips: int = Field(default=10_000, ge=1)
    digits: int = Field(default=2, ge=1)
    variable: str = "t2m"
    years: Years = YEARS

    @model_validator(mode="after")
    def _consistent(self) -> ForecastSettings:
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"size must be a height and a width of 1 or more; got {list(self.size)}")
        if set(self.years) != {"train", "val", "test"} or any(first > last for first, last in self.years.values()):
            raise ValueError("years must name a first and a last year for each of train, val and test")
        return self

    @property
    def channels(self) -> int:
        """Of the frames of videos."""
        return 1 if self.colours == "grey" else 3
