"""Recipes: how to train a classifier, as data. The core ships `generic`, `imagenet` and `transfer`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vsuite.core.images.augmentation import AugmentationSettings
from vsuite.core.images.preprocessing import PreprocessingSettings
from vsuite.core.training.recipes import Recipes
from vsuite.core.training.settings import MAY_CHANGE, TrainingSettings


class ValidationSettings(BaseModel):
    """Attributes:
    fraction: share of the images that validates where the data set does not say.
    every_epochs: how often; None goes by `training.validate_every`, in steps, which wins where it is set.
    """

    model_config = ConfigDict(extra="forbid")

    fraction: float = Field(default=0.2, ge=0, lt=1)
    every_epochs: float | None = Field(default=1.0, gt=0, json_schema_extra=MAY_CHANGE)


class RecipeSettings(BaseModel):
    """A whole recipe.

    Attributes:
        name, about: what it is called, and what it is for.
        model, options: a registered classification model, and options of its builder.
        drop_path: `drop_path_rate` of models that have one; None leaves the model's own.
        freeze: "backbone" trains the head alone, a linear probe; what is fixed also stays in eval mode.
        training: length, optimiser, schedule; see `TrainingSettings`.
        label_smoothing: share of the target that is spread over all classes (multi-label: moved towards one half).
        image: how an image becomes the network's input.
        check_images: images that are decoded before training starts, spread evenly; the others when their turn comes.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str = ""
    model: str = "convnext_tiny"
    options: dict[str, Any] = {}
    drop_path: float | None = Field(default=None, ge=0, lt=1)
    freeze: Literal["none", "backbone"] = "none"
    training: TrainingSettings
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    augmentation: AugmentationSettings = AugmentationSettings()
    image: PreprocessingSettings = PreprocessingSettings()
    validation: ValidationSettings = ValidationSettings()
    check_images: int = Field(default=2000, ge=0, json_schema_extra=MAY_CHANGE)

    @model_validator(mode="after")
    def _steps_before_epochs(self) -> RecipeSettings:
        """Kept settings list every field, so there only a value other than the default says that it was chosen."""
        alone = "validate_every" in self.training.model_fields_set and "every_epochs" not in self.validation.model_fields_set
        if alone or self.training.validate_every != TrainingSettings.model_fields["validate_every"].default:
            self.validation = self.validation.model_copy(update={"every_epochs": None})
        return self


class RunSettings(RecipeSettings):
    """Everything that decides a run: a recipe, and what it is applied to. It is kept as the run's `settings.yaml`.

    Attributes:
        data: see `read_dataset`.
        multi_label: None decides from the data.
        weights: file or name of weights to start from; None starts from scratch.
    """

    data: str = Field(min_length=1)
    multi_label: bool | None = None
    weights: str | None = None


RECIPES = Recipes(
    ("vsuite.core.images",),
    RecipeSettings,
    RunSettings,
    default="generic",
    nothing_named="no data set is named: give a folder of class folders, a .csv or a .npz file",
)
list_recipes, load_recipe = RECIPES.names, RECIPES.load
