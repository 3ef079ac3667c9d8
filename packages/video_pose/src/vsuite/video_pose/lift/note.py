"""What the weights of a lifter say beside the weights."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Note(BaseModel):
    """What goes into a lifter, and what it has learnt from.

    Attributes:
        layout: of the joints, 2D and 3D; see `vsuite.video_pose.skeletons`.
        fps: frames a second of the videos that it learnt from; others are brought to this rate in time.
        field_of_view: over the picture's width, degrees, of the cameras that it learnt from; None if they differ.
        trained_on: names of the sequences that it learnt from; they say nothing about how good it is.
    """

    model_config = ConfigDict(extra="forbid")

    task: Literal["lift"] = "lift"
    layout: str = "h36m17"
    fps: float = Field(gt=0, allow_inf_nan=False)
    field_of_view: float | None = Field(default=None, gt=0, lt=180)
    trained_on: list[str] = []
