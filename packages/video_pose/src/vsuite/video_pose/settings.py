"""Recipes and settings of a training run: how to train, as data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from vsuite.core.training.recipes import Recipes
from vsuite.core.training.settings import TrainingSettings
from vsuite.video_pose.action.settings import ActionSettings
from vsuite.video_pose.forecast.settings import ForecastSettings
from vsuite.video_pose.keywords.settings import KeywordSettings
from vsuite.video_pose.lift.settings import LiftSettings

TaskName = Literal["lift", "action", "forecast", "keywords"]


class ValidationSettings(BaseModel):
    """What validates.

    Attributes:
        fraction: of the training data held out where the data name nothing to validate on.
        most: videos or clips at the most, evenly spread; None takes all.
        pictures: how many to draw.
    """

    model_config = ConfigDict(extra="forbid")

    fraction: float = Field(default=0.1, gt=0, lt=1)
    most: int | None = Field(default=None, ge=1)
    pictures: int = Field(default=4, ge=0)


class RecipeSettings(BaseModel):
    """A whole recipe.

    Attributes:
        name, about: what it is called, and what it is for.
        task: "lift" (2D poses to 3D), "action" (what people do), "forecast" (what a video shows next) or "keywords" (spoken words).
        model, options: what is trained: the name of a registered model, and its options.
        training: length, optimiser, schedule; see `TrainingSettings`.
        lift, action, forecast, keywords: how data become samples, each for the task of its name.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str = ""
    task: TaskName
    model: str
    options: dict[str, Any] = {}
    training: TrainingSettings
    validation: ValidationSettings = ValidationSettings()
    lift: LiftSettings = LiftSettings()
    action: ActionSettings = ActionSettings()
    forecast: ForecastSettings = ForecastSettings()
    keywords: KeywordSettings = KeywordSettings()


class RunSettings(RecipeSettings):
    """Everything that decides a run: a recipe, and what it is applied to. It is kept as the run's `settings.yaml`.

    Attributes:
        data: folder or file of the data set.
        weights: file or name of weights to start from; None starts from scratch.
    """

    data: str
    weights: str | None = None


RECIPES = Recipes(
    ("vsuite.video_pose",),
    RecipeSettings,
    RunSettings,
    default="convformer_mocap",
    nothing_named="no data are named: give the file or folder of a data set (--data)",
)
list_recipes, load_recipe = RECIPES.names, RECIPES.load
