"""Recipes that packages ship, YAML files in their folders `recipes`, and the settings that runs make of them."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel

from vsuite.core.errors import InputError, unknown
from vsuite.core.training.settings import apply_overrides, check_settings, load_settings, read_yaml

Recipe = TypeVar("Recipe", bound=BaseModel)
Run = TypeVar("Run", bound=BaseModel)


@dataclass(frozen=True)
class Recipes(Generic[Recipe, Run]):
    """The recipes of a domain.

    Attributes:
        packages: that ship them, such as ("vsuite.core.images",); of two recipes of one name, the first package's counts.
        recipe: what a recipe says.
        run: what decides a run: the fields of a recipe, and what it is applied to, `data` at the least.
        default: name of the recipe of a run that names none.
        nothing_named: the error where a run names no data.
    """

    packages: tuple[str, ...]
    recipe: type[Recipe]
    run: type[Run]
    default: str
    nothing_named: str

    def names(self) -> list[str]:
        """Names of the recipes that are shipped."""
        folders = [importlib.resources.files(package) / "recipes" for package in self.packages]
        return sorted({file.name.removesuffix(".yaml") for folder in folders for file in folder.iterdir() if file.name.endswith(".yaml")})

    def load(self, source: str | Path) -> Recipe:
        """A recipe by name, or from a YAML file of one's own.

        Raises:
            InputError: for an unknown name (naming the nearest) and for what is wrong in a file.
        """
        path = Path(source)
        if path.suffix in (".yaml", ".yml", ".json") or path.is_file():
            return load_settings(path, self.recipe)
        names = self.names()
        if str(source) not in names:
            raise unknown("recipe (and no such file)", str(source), names)
        places = (importlib.resources.files(package) / "recipes" / f"{source}.yaml" for package in self.packages)
        with importlib.resources.as_file(next(place for place in places if place.is_file())) as file:
            return load_settings(file, self.recipe)

    def resolve(
        self,
        *,
        data: str | Path | Sequence[str | Path] | None = None,
        recipe: str | Path | None = None,
        config: str | Path | None = None,
        overrides: Sequence[str] = (),
        default: str | None = None,
        **given: Any,
    ) -> Run:
        """The settings of a run: a recipe or a settings file, then what is given, then what overrides it.

        Args:
            data: what to train on; None takes the settings file's.
            recipe: name or file of a recipe; None is the default one.
            config: a run's `settings.yaml`, in place of a recipe.
            overrides: "training.steps=1000" and the like.
            default: name of the default recipe, in place of the domain's.
            given: further fields of a run's settings; None leaves one as it is.

        Raises:
            InputError: for unknown settings (naming the nearest), wrong values, a recipe beside a settings file, and where no
                data is named.
        """
        if config is not None and recipe is not None:
            raise InputError("give either a recipe or a settings file, not both")
        given = {key: value for key, value in given.items() if value is not None}
        if data is not None:
            given["data"] = str(data) if isinstance(data, str | Path) else [str(source) for source in data]
        if config is not None:
            settings = check_settings(self.run, read_yaml(config) | given, str(config))
        elif not given.get("data"):
            raise InputError(self.nothing_named)
        else:
            settings = check_settings(self.run, self.load(recipe or default or self.default).model_dump() | given)
        return apply_overrides(settings, overrides)
