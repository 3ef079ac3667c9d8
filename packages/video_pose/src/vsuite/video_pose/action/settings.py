"""How videos of people become training samples."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Coordinates = Literal["picture", "people", "body", "start"]


class ClipSettings(BaseModel):
    """How a clip is cut from a video and written as numbers. It is kept with the weights, so that prediction does the same.

    Attributes:
        frames: that the model sees.
        window: frames of the video that a clip spans, evenly thinned to `frames`; shorter videos go back and forth. None: the
            whole video, one frame from each of `frames` equal parts, as pyskl samples.
        people: at most, those with the surest joints first.
        coordinates: of joints. "picture" (2D): the picture's longer side is -1 to 1. "people" (2D): a square around everyone in
            the clip, a quarter wider than they are. "body" (3D, metres): in each frame the middle of the hips is 0 and the left
            hip lies to +x, so that place and heading are gone. "start" (3D, ntu25): as pyskl, upright at the origin in the first frame.
        up: axis of the data that points up (y in Kinect's space and in most motion capture), for "body".
        fps: frames per second of the videos; None where it is not known. It only turns frames into seconds.
        size: side in pixels of the square of the film that is looked at, for models of RGB.
    """

    model_config = ConfigDict(extra="forbid")

    frames: int = Field(default=32, ge=1)
    window: int | None = Field(default=None, ge=1)
    people: int = Field(default=1, ge=1)
    coordinates: Coordinates = "people"
    up: Literal["x", "y", "z"] = "y"
    fps: float | None = Field(default=None, gt=0)
    size: int = Field(default=224, ge=16)

    @model_validator(mode="after")
    def _consistent(self) -> ClipSettings:
        if self.window is not None and self.window < self.frames:
            raise ValueError(f"window must span the {self.frames} frames of a clip at least; got {self.window}")
        return self

    @property
    def dimensions(self) -> int:
        """Coordinates of a joint."""
        return 2 if self.coordinates in ("picture", "people") else 3


class AugmentSettings(BaseModel):
    """What is changed at random in training.

    Attributes:
        mirror: half of the clips, left and right exchanged.
        turn: largest turn about the upward axis, in degrees, either way; for 3D.
        scale: largest share by which people grow or shrink.
        noise: standard deviation of what is added to each coordinate, in the model's units.
        speed: largest share by which a window is longer or shorter.
        shorten: share of the clips that are cut short, down to half a window, and then go back and forth as short videos do:
            otherwise that alone would give away the actions whose videos are short.
        crop: least share of the square's area that is looked at, for models of RGB; 1 takes all of it.
    """

    model_config = ConfigDict(extra="forbid")

    mirror: bool = True
    turn: float = Field(default=0.0, ge=0, le=180)
    scale: float = Field(default=0.0, ge=0, lt=1)
    noise: float = Field(default=0.0, ge=0)
    speed: float = Field(default=0.0, ge=0, lt=1)
    shorten: float = Field(default=0.0, ge=0, le=1)
    crop: float = Field(default=1.0, gt=0, le=1)


class ActionSettings(BaseModel):
    """How videos of people become training samples.

    Attributes:
        layout: of the joints: coco17, h36m17, ntu25, ... It is never guessed.
        classes: names in the order of the labels, for files that have none.
        split: of data sets that have several: xsub, xview, xset, 1, ... None takes the only one.
        fold: where data have no split, a share of each class's videos is held out (`validation.fraction`); this chooses which.
        films: folder with the videos of a file of skeletons, called like them; for models of RGB.
        clip, augment: see their own.
        balanced: draw classes equally often in training, however many videos each has.
        smoothing: share of the target that is spread over all classes.
        test_clips: clips a video in validation where a clip spans the whole video; windows lie half a window apart.
    """

    model_config = ConfigDict(extra="forbid")

    layout: str = "coco17"
    classes: list[str] = []
    split: str | None = None
    fold: int = Field(default=0, ge=0)
    films: str | None = None
    clip: ClipSettings = ClipSettings()
    augment: AugmentSettings = AugmentSettings()
    balanced: bool = True
    smoothing: float = Field(default=0.0, ge=0, lt=1)
    test_clips: int = Field(default=1, ge=1)
