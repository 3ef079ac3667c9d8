"""Recipes that a package ships: YAML files in its folder `recipes`."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from vsuite.core.errors import InputError, unknown
from vsuite.core.training.settings import Settings, apply_overrides, check_settings, load_settings, read_yaml


def list_recipes(package: str) -> list[str]:
    """Names of the recipes that a package, such as "vsuite.core.images", ships."""
    files = (importlib.resources.files(package) / "recipes").iterdir()
    return sorted(file.name.removesuffix(".yaml") for file in files if file.name.endswith(".yaml"))


def load_recipe(package: str, source: str | Path, settings: type[Settings]) -> Settings:
    """A recipe of a package by name, or from a YAML file of one's own.

    Raises:
        InputError: for an unknown name (naming the nearest) and for what is wrong in a file.
    """
    path = Path(source)
    if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
        return load_settings(path, settings)
    if str(source) not in list_recipes(package):
        raise unknown("recipe (and no such file)", str(source), list_recipes(package))
    with importlib.resources.as_file(importlib.resources.files(package) / "recipes" / f"{source}.yaml") as file:
        return load_settings(file, settings)


def resolve(
    run_settings: type[Settings],
    load: Callable[[str | Path], BaseModel],
    *,
    recipe: str | Path | None,
    default_recipe: str,
    config: str | Path | None,
    overrides: Sequence[str],
    given: Mapping[str, Any],
    nothing_named: str,
) -> Settings:
    """The settings of a run: a recipe or a settings file, then what is given, then what overrides it.

    Args:
        run_settings: what a run is decided by: the fields of a recipe, and what it is applied to.
        load: reads a recipe.
        recipe: which one; None is the default one.
        config: a run's `settings.yaml`, in place of a recipe.
        overrides: "training.steps=1000" and the like.
        given: fields of `run_settings`; None leaves one as it is.
        nothing_named: the error where neither `given` nor a settings file names the data.

    Raises:
        InputError: for unknown settings (naming the nearest), wrong values, a recipe beside a settings file, and where no data is named.
    """
    if config is not None and recipe is not None:
        raise InputError("give either a recipe or a settings file, not both")
    given = {key: value for key, value in given.items() if value is not None}
    if config is not None:
        settings = check_settings(run_settings, read_yaml(config) | given, str(config))
    elif not given.get("data"):
        raise InputError(nothing_named)
    else:
        settings = check_settings(run_settings, load(recipe or default_recipe).model_dump() | given)
    return apply_overrides(settings, overrides)
