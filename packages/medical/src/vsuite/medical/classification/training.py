"""Training a classifier of medical pictures: the core's, from medical recipes, data sets and pre-trained encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vsuite.core.errors import InputError
from vsuite.core.images import recipes as image_recipes
from vsuite.core.images import training
from vsuite.core.images.recipes import RunSettings
from vsuite.core.registry import model_info
from vsuite.core.training import TrainingResult
from vsuite.core.weights import find_weights, read_metadata
from vsuite.medical.classification.datasets import read_dataset

RECIPES = replace(image_recipes.RECIPES, packages=("vsuite.medical.classification", *image_recipes.RECIPES.packages))
list_recipes, load_recipe = RECIPES.names, RECIPES.load

ENCODER = ("image_size", "patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")  # what a ViT shares with its autoencoder


def resolve_settings(
    *,
    data: str | Path | None = None,
    recipe: str | Path | None = None,
    config: str | Path | None = None,
    overrides: Sequence[str] = (),
    **given: Any,
) -> RunSettings:
    """The core's `resolve_settings`; weights of a pre-training run make the model the ViT that is that autoencoder's encoder.

    The options of a recipe's model do not count for another model that an override names.

    Raises:
        InputError: for unknown settings (naming the nearest), wrong values, where no data set is named, and for a model that
            was asked for (by name, or by a recipe) and is not the encoder of the weights.
    """
    asked_for = next((override.partition("=")[2].strip() for override in overrides if override.partition("=")[0].strip() == "model"), None)
    if recipe is not None and config is None:
        of_recipe = load_recipe(recipe).model
        if asked_for not in (None, of_recipe):
            overrides = ["options={}", *overrides]
        asked_for = asked_for or of_recipe
    settings = training.resolve_settings(data=data, recipe=recipe, config=config, overrides=overrides, recipes=RECIPES, **given)
    if settings.weights is None:
        return settings
    return _with_encoder_of(settings.weights, settings, asked_for if config is None else settings.model)


def _with_encoder_of(weights: str, settings: RunSettings, asked_for: str | None) -> RunSettings:
    note = read_metadata(find_weights(weights))
    name = note.get("model")
    if name is None or model_info(name).task != "pretraining":
        return settings
    encoder = _encoder(name)
    if asked_for not in (None, encoder):
        raise InputError(f"{weights}: holds a {name}, which starts a {encoder}, not a {asked_for}; choose a recipe or --model of that")
    known = {**model_info(name).options, **note.get("options", {})}
    others = {key: value for key, value in settings.options.items() if key in model_info(encoder).options}
    return settings.model_copy(update={"model": encoder, "options": others | {key: known[key] for key in ENCODER}})


def _encoder(name: str) -> str:
    """ "mae_vit_small_patch16_dec512d2b" -> "vit_small_patch16"."""
    encoder = name.removeprefix("mae_").rpartition("_dec")[0]
    if model_info(encoder).system != "vit":
        raise InputError(f"{name}: its encoder is no vision transformer")
    return encoder


def train(
    settings: RunSettings, out: str | Path, *, device: str = "auto", resume: bool = False, say: Callable[[str], None] = print
) -> TrainingResult:
    """The core's `train` on the data sets that `read_dataset` knows."""
    return training.train(settings, out, device=device, resume=resume, say=say, read=read_dataset)
