"""Recipes and settings of a training run: how to train, as data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from vsuite.core.errors import InputError
from vsuite.core.training.recipes import Recipes
from vsuite.core.training.schedules import register_schedule
from vsuite.core.training.settings import TrainingSettings
from vsuite.restoration.real_esrgan import DegradationSettings
from vsuite.restoration.resize import Convention


class LoopSettings(TrainingSettings):
    """The training loop's settings, with what the schedule "halved" needs.

    Attributes:
        milestones: updates after which the learning rate is halved.
    """

    milestones: tuple[int, ...] = ()


@register_schedule("halved")
def halved(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """`learning_rate`, halved at each of the `milestones` passed."""
    if not isinstance(settings, LoopSettings):
        raise InputError("the schedule 'halved' needs milestones, which only restoration's settings have")
    return settings.learning_rate * 0.5 ** sum(step >= milestone for milestone in settings.milestones)


class LossSettings(BaseModel):
    """Weights of the loss terms; a term of weight 0 costs nothing.

    Attributes:
        pixel: "l1", "mse" or "charbonnier". pixel_weight: its weight.
        perceptual_weight: of the distance between VGG19's features. perceptual_weights: file of VGG19's weights (torchvision's names).
        adversarial_weight: of the GAN term; above 0 a U-Net discriminator is trained alongside, with discriminator_learning_rate
            and discriminator_features.
    """

    model_config = ConfigDict(extra="forbid")

    pixel: Literal["l1", "mse", "charbonnier"] = "l1"
    pixel_weight: float = Field(default=1.0, ge=0)
    perceptual_weight: float = Field(default=0.0, ge=0)
    perceptual_weights: str | None = None
    adversarial_weight: float = Field(default=0.0, ge=0)
    discriminator_learning_rate: float = Field(default=1e-4, gt=0)
    discriminator_features: int = Field(default=64, ge=1)


class ValidationSettings(BaseModel):
    """How pictures are validated on.

    Attributes:
        held_out: how many of the training pictures validate where no folder of others is given, spread evenly over the list; never
            more than a quarter of them, rounded up.
        pictures: how many before/after pictures to draw.
    """

    model_config = ConfigDict(extra="forbid")

    held_out: int = Field(default=5, ge=0)
    pictures: int = Field(default=4, ge=0)


class RecipeSettings(BaseModel):
    """A whole recipe.

    Attributes:
        name, about: what it is called, and what it is for.
        model, options: what is trained: the name of a registered model, and its options.
        training: length, optimiser, schedule; see `TrainingSettings`.
        patch: side of a training patch in low resolution.
        keep_prepared: keep the training pictures as arrays in the run folder (3 bytes a pixel), which makes loading much faster.
        enlarge_small: enlarge pictures smaller than a patch, instead of refusing them.
        degradation: how low resolution is made: "bicubic", or "real_esrgan" (blur, noise and JPEG, twice).
        degradations: how strong those are.
        convention: of the bicubic resize, A or B; see `vsuite.restoration.resize`. It also makes the validation pairs.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str = ""
    model: str
    options: dict[str, Any] = {}
    training: LoopSettings
    patch: int = Field(default=64, ge=1)
    keep_prepared: bool = True
    enlarge_small: bool = False
    degradation: Literal["bicubic", "real_esrgan"] = "bicubic"
    degradations: DegradationSettings = DegradationSettings()
    convention: Convention = "A"
    loss: LossSettings = LossSettings()
    validation: ValidationSettings = ValidationSettings()

    @model_validator(mode="after")
    def _consistent(self) -> RecipeSettings:
        if self.loss.adversarial_weight and (self.training.accumulate > 1 or self.training.precision == "fp16"):
            raise ValueError("an adversarial loss needs accumulate 1 and precision fp32 or bf16")
        return self


class RunSettings(RecipeSettings):
    """Everything that decides a run: a recipe, and what it is applied to. It is kept as the run's `settings.yaml`.

    Attributes:
        data: folders of high-resolution pictures to train on.
        validation_data: folder of high-resolution pictures to validate on; None holds some of `data` out.
        weights: file or name of weights to start from; None starts from scratch.
    """

    data: list[str] = Field(min_length=1)
    validation_data: str | None = None
    weights: str | None = None

    @field_validator("data", mode="before")
    @classmethod
    def _folders(cls, data: Any) -> Any:
        return [data] if isinstance(data, str) else data


RECIPES = Recipes(
    ("vsuite.restoration",),
    RecipeSettings,
    RunSettings,
    default="drct_lite",
    nothing_named="no pictures are named: give a folder of high-resolution pictures",
)
list_recipes, load_recipe = RECIPES.names, RECIPES.load
