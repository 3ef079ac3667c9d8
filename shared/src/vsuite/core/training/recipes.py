"""Recipes that a package ships: YAML files in its folder `recipes`."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

from vsuite.core.errors import unknown
from vsuite.core.training.settings import Settings, load_settings


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
