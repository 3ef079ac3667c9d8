"""How 2D poses of videos become training samples."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vsuite.core.training import TrainingSettings, register_schedule

Angle = Annotated[float, Field(ge=-80, le=80)]
Pixels = Annotated[float, Field(ge=0, le=200)]


@register_schedule("exponential")
def exponential(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """The same factor every step, from `learning_rate` down to `min_learning_rate`: how lifters were published (0.95 an epoch, say)."""
    lowest = settings.min_learning_rate or 1e-3 * settings.learning_rate
    return settings.learning_rate * (lowest / settings.learning_rate) ** (step / max(1, total_steps - 1))


class CameraSettings(BaseModel):
    """Where the virtual cameras stand that look at motion capture; each sees one shot, and does not move.

    Attributes:
        distance: least and greatest, from the middle of the shot, metres; a camera stands back until everything is 1 m ahead.
        elevation: least and greatest angle above the horizon that it looks down from, degrees. Its direction is any.
        roll: greatest, to both sides, degrees.
        aim: how far beside the middle of the shot it looks at the most, metres.
        field_of_view: over the width of the picture, degrees.
        width, height: of the picture, pixels.
    """

    model_config = ConfigDict(extra="forbid")

    distance: tuple[float, float] = (3.0, 6.0)
    elevation: tuple[Angle, Angle] = (-10.0, 25.0)
    roll: float = Field(default=2.0, ge=0, le=45)
    aim: float = Field(default=0.3, ge=0, le=2)
    field_of_view: float = Field(default=50.0, ge=10, le=90)
    width: int = Field(default=1000, ge=1)
    height: int = Field(default=1000, ge=1)

    @model_validator(mode="after")
    def _consistent(self) -> CameraSettings:
        if not 1 <= self.distance[0] <= self.distance[1]:
            raise ValueError(f"distance must be two rising numbers from 1 m on; got {list(self.distance)}")
        if self.elevation[0] > self.elevation[1]:
            raise ValueError(f"elevation must be two rising numbers; got {list(self.elevation)}")
        return self


class LiftSettings(BaseModel):
    """How 2D poses of videos become training samples.

    Attributes:
        detections: of Human3.6M, which 2D poses: "gt", "cpn_ft_h36m_dbb", ...: the end of the name of data_2d_h36m_*.npz.
        train_subjects, test_subjects: of Human3.6M; subjects that the data lack are an error.
        cameras: virtual ones, for motion capture.
        cameras_per_shot: that validate, a quarter turn apart if four.
        shot: frames of a shot in training, least and most. validation_shot: the longest that validates.
        noise: standard deviation of the Gaussian error of 2D joints in training, pixels, drawn for each sample between the two.
        validation_noise: what validates: each gives its own figures, and the mean of all is "mpjpe".
        body_scale: bodies are made larger or smaller by up to this share. No picture tells how large a body is: a large share only blurs
            what a model learns of those that it has seen.
        flip: mirror every other sample.
        balance: 0 draws every frame equally often, 1 every action, in between the power in between.
    """

    model_config = ConfigDict(extra="forbid")

    detections: str = "gt"
    train_subjects: list[str] = ["S1", "S5", "S6", "S7", "S8"]
    test_subjects: list[str] = ["S9", "S11"]
    cameras: CameraSettings = CameraSettings()
    cameras_per_shot: int = Field(default=4, ge=1)
    shot: tuple[int, int] = (60, 240)
    validation_shot: int = Field(default=120, ge=2)
    noise: tuple[Pixels, Pixels] = (0.0, 8.0)
    validation_noise: list[Pixels] = Field(default=[0.0, 5.0], min_length=1)
    body_scale: float = Field(default=0.03, ge=0, le=0.5)
    flip: bool = True
    balance: float = Field(default=0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _consistent(self) -> LiftSettings:
        if not 1 <= self.shot[0] <= self.shot[1]:
            raise ValueError(f"shot must be two rising numbers of frames; got {list(self.shot)}")
        if self.noise[0] > self.noise[1]:
            raise ValueError(f"noise must be two rising numbers; got {list(self.noise)}")
        return self
