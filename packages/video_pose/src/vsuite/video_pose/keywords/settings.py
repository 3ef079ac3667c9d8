"""How recordings become training samples."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from vsuite.core.training.schedules import register_schedule

if TYPE_CHECKING:
    from vsuite.core.training.settings import TrainingSettings


class KeywordSettings(BaseModel):
    """How recordings become training samples: log-mel features, changed at random as the published recipe does it.

    Attributes:
        words: the classes in order; empty takes the folders of the data set, in alphabetical order.
        frames: of 10 ms a clip: shorter ones are padded with zeros, longer ones cut.
        mel_bins: of a frame.
        mixup: share of the samples that are mixed with another recording; mixup_beta: both parameters of the Beta distribution.
        mask_frequency, mask_time: widest band of bins and of frames that is set to 0.
        noise: most of the uniform noise that is added to the features.
        shift: most frames by which a clip is moved in time, round its ends.
    """

    model_config = ConfigDict(extra="forbid")

    words: list[str] = []
    frames: int = Field(default=128, ge=8)
    mel_bins: int = Field(default=128, ge=8)
    mixup: float = Field(default=0.6, ge=0, le=1)
    mixup_beta: float = Field(default=10.0, gt=0)
    mask_frequency: int = Field(default=48, ge=0)
    mask_time: int = Field(default=48, ge=0)
    noise: float = Field(default=0.1, ge=0)
    shift: int = Field(default=10, ge=0)


@register_schedule("keywords_steps")
def keywords_steps(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """LMUFormer's published schedule: the rate times 0.85 after each twentieth of the run, which is 10 of its 200 epochs."""
    return settings.learning_rate * 0.85 ** (20 * step // total_steps)
