"""Recipes: how to train on a data set, as data. The package ships those in its folder `recipes`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from vsuite.core.errors import InputError, unknown
from vsuite.core.training.recipes import Recipes
from vsuite.core.training.schedules import register_schedule
from vsuite.core.training.settings import TrainingSettings
from vsuite.medical.data.planning import PlanSettings, fixed_plan, load_plan
from vsuite.medical.data.transforms import AugmentationSettings
from vsuite.medical.metrics import find_convention
from vsuite.medical.plan import Plan


class ValidationSettings(BaseModel):
    """How validation cases are chosen and predicted.

    Attributes:
        fraction: share of the cases that validates where no split is given.
        window: voxels of the sliding window along D, H, W; None takes the plan's patch size.
        overlap, blend, mirror: of the sliding window, as in prediction.
        convention: what empty masks count as in the Dice; a name of `vsuite.medical.metrics.CONVENTIONS`.
    """

    model_config = ConfigDict(extra="forbid")

    fraction: float = Field(default=0.2, ge=0, lt=1)
    window: tuple[int, int, int] | None = None
    overlap: float = Field(default=0.5, ge=0, lt=1)
    blend: Literal["gaussian", "constant"] = "gaussian"
    mirror: bool = False
    convention: str = "nnunet"

    @field_validator("convention")
    @classmethod
    def _known_convention(cls, name: str) -> str:
        return find_convention(name).name


class RecipeSettings(BaseModel):
    """A whole recipe.

    Attributes:
        name, about: what it is called, and what it is for.
        plan: what it decides about the plan; the rest follows from the data set.
        training: length, optimiser, schedule; see `TrainingSettings`.
        loss: name of a loss of `vsuite.medical.losses`.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    about: str = ""
    plan: PlanSettings = PlanSettings()
    training: TrainingSettings
    loss: str = "dice_ce"
    augmentation: AugmentationSettings = AugmentationSettings()
    validation: ValidationSettings = ValidationSettings()

    @field_validator("loss")
    @classmethod
    def _known_loss(cls, name: str) -> str:
        from vsuite.medical.losses import LOSSES

        if name not in LOSSES:
            raise unknown("loss", name, LOSSES)
        return name


class RunSettings(RecipeSettings):
    """Everything that decides a run: a recipe, and what it is applied to. It is kept as the run's `settings.yaml`.

    Attributes:
        data: folder of the data set, or its dataset.json.
        split: JSON file of the training and validation cases; None divides by `fold`, else by `validation.fraction`.
        fold: which of `folds` parts validates; with a split file, which of its folds.
        weights: file or name of weights to start from; None starts from scratch.
    """

    data: str = Field(min_length=1)
    split: str | None = None
    fold: int | None = None
    folds: int = Field(5, ge=2)
    weights: str | None = None


RECIPES = Recipes(
    ("vsuite.medical",),
    RecipeSettings,
    RunSettings,
    default="generic",
    nothing_named="no data set is named: give a folder with dataset.json, or with images/ and labels/",
)
list_recipes, load_recipe = RECIPES.names, RECIPES.load


def find_plan(source: str | Path) -> Plan:
    """A plan: from a YAML file, such as a run's plan.yaml, or of a recipe that fixes everything, as `brats2017` does.

    The window of such a recipe is the one it validates with.

    Raises:
        InputError: for an unknown name, a recipe that leaves something to the data set, and what is wrong in a file.
    """
    if str(source) not in list_recipes():
        if Path(source).is_file():
            return load_plan(source)
        raise unknown("recipe (and no such file)", str(source), list_recipes())
    recipe = load_recipe(source)
    plan = fixed_plan(recipe.plan, recipe.name)
    return plan.model_copy(update={"patch_size": recipe.validation.window or plan.patch_size})


@register_schedule("transunet_poly")
def transunet_poly(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """TransUNet's polynomial decay, lr (1 - i / total)^0.9, set after step i by its authors: a step runs at the rate of the one before."""
    return settings.learning_rate * (1 - max(step - 1, 0) / total_steps) ** 0.9


WARMUP_EPOCHS, RESTART_EPOCHS, PUBLISHED_EPOCHS = 20, 400, 800


def brats_learning_rate(epoch: int, base: float = 1e-4, floor: float = 6e-6) -> float:
    """The learning rate of one epoch (from 0) of the published SegFormer3D run on BraTS.

    Linear warm-up over 20 epochs, then a cosine that restarts every 400. Two oddities of the released code, which builds
    both schedulers on one optimiser, are kept: the first epoch runs at the full rate, and the warm-up overshoots by one step.
    """
    if epoch == 0:
        return base
    if epoch <= WARMUP_EPOCHS:
        return base * (epoch + 1) / WARMUP_EPOCHS
    phase = (epoch - WARMUP_EPOCHS) % RESTART_EPOCHS / RESTART_EPOCHS
    return floor + (base - floor) * (1 + math.cos(math.pi * phase)) / 2


@register_schedule("segformer3d_brats")
def segformer3d_brats(step: int, total_steps: int, settings: TrainingSettings) -> float:
    """`brats_learning_rate` of the epoch that a step belongs to; needs the length of the run in epochs."""
    if settings.epochs is None:
        raise InputError(f"the schedule 'segformer3d_brats' counts epochs: set training.epochs (published: {PUBLISHED_EPOCHS})")
    epoch = int(step * settings.epochs // total_steps)
    return brats_learning_rate(epoch, settings.learning_rate, settings.min_learning_rate)
