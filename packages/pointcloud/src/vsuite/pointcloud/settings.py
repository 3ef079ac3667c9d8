"""Recipes and settings of a training run: how to train, as data."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from vsuite.core.training.recipes import Recipes
from vsuite.core.training.settings import TrainingSettings
from vsuite.pointcloud.data.transforms import compose

Step = str | dict[str, Any]
Task = Literal["detect", "classify", "parts"]


class SweepSettings(BaseModel):
    """How lidar sweeps become training samples.

    Attributes:
        classes: what to find, in the order of the outputs.
        merge: classes of the data that count as another one, such as {Van: Car}; what is neither here nor in `classes` is left out.
        columns: what the network reads beside x, y and z, such as ["intensity"].
        column_scales: each of those is divided by it. tanh: those that then go through tanh.
        min_points: boxes with fewer points are not learnt.
        paste: objects of other frames added to each, by class. min_paste_points: each has at least this many points.
        augment: transforms in order, after the paste; see `vsuite.pointcloud.data.transforms.compose`.
    """

    model_config = ConfigDict(extra="forbid")

    classes: list[str] = Field(default=["Car", "Pedestrian", "Cyclist"], min_length=1)
    merge: dict[str, str] = {}
    columns: list[str] = []
    column_scales: dict[str, float] = {}
    tanh: list[str] = []
    min_points: int = Field(default=1, ge=0)
    paste: dict[str, int] = {}
    min_paste_points: int = Field(default=5, ge=1)
    augment: list[Step] = [
        "random_flip",
        {"name": "random_rotation", "degrees": 45, "about": "origin"},
        {"name": "random_scale", "low": 0.95, "high": 1.05},
    ]

    @model_validator(mode="after")
    def _consistent(self) -> SweepSettings:
        wrong = [name for name in [*self.merge.values(), *self.paste] if name not in self.classes]
        if wrong:
            raise ValueError(f"{wrong[0]!r} is none of the classes {', '.join(self.classes)}")
        compose(self.augment)
        return self


class ShapeSettings(BaseModel):
    """How shapes become training samples.

    Attributes:
        points: a shape, the first of those stored.
        normalise: centre each shape and scale it into the unit sphere.
        smoothing: label smoothing, spread over the wrong classes.
        augment: transforms in order; see `vsuite.pointcloud.data.transforms.compose`.
    """

    model_config = ConfigDict(extra="forbid")

    points: int = Field(default=1024, ge=8)
    normalise: bool = True
    smoothing: float = Field(default=0.2, ge=0, lt=1)
    augment: list[Step] = [{"name": "random_scale", "low": 2 / 3, "high": 3 / 2, "per_axis": True}, "random_shift", "shuffle"]

    @model_validator(mode="after")
    def _consistent(self) -> ShapeSettings:
        compose(self.augment)
        return self


class ValidationSettings(BaseModel):
    """What validates.

    Attributes:
        fraction: of the training data held out where the data names nothing to validate on.
        most: frames or shapes at the most, evenly spread; None takes all.
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
        task: "detect" (boxes in sweeps), "classify" (whole shapes) or "parts" (a label a point of a shape).
        model, options: what is trained: the name of a registered model, and its options.
        training: length, optimiser, schedule; see `TrainingSettings`.
        sweeps: for the task "detect". shapes: for the others.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str = ""
    task: Task
    model: str
    options: dict[str, Any] = {}
    training: TrainingSettings
    sweeps: SweepSettings = SweepSettings()
    shapes: ShapeSettings = ShapeSettings()
    validation: ValidationSettings = ValidationSettings()


class RunSettings(RecipeSettings):
    """Everything that decides a run: a recipe, and what it is applied to. It is kept as the run's `settings.yaml`.

    Attributes:
        data: folder or file of the data set.
        weights: file or name of weights to start from; None starts from scratch.
    """

    data: str
    weights: str | None = None


RECIPES = Recipes(
    ("vsuite.pointcloud",),
    RecipeSettings,
    RunSettings,
    default="flatformer_streets",
    nothing_named="no data is named: give the folder of a data set",
)
list_recipes, load_recipe = RECIPES.names, RECIPES.load
