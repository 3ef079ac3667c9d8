"""The options that verbs share, so that they have one name and one help text in every package.

Use them as annotations: `def train(data: Data, device: Device = "auto", settings: Set = ()) -> None`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml

from vsuite.core import devices
from vsuite.core.batch import Summary, check_failed
from vsuite.core.errors import InputError

if TYPE_CHECKING:
    from vsuite.core.training import TrainingResult

Model = Annotated[str, typer.Option("--model", help="Name of a model; `vsuite models` lists them.")]
Weights = Annotated[str | None, typer.Option("--weights", help="File of weights, or the name of weights that a package ships.")]
Ensemble = Annotated[list[str], typer.Option("--weights", help="File or name of shipped weights; repeat it to average several.")]
Data = Annotated[Path, typer.Option("--data", help="Data set: a folder or its description.")]
Out = Annotated[Path, typer.Option("--out", help="Where the result goes; made if it does not exist.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda or cuda:N.")]
Precision = Annotated[devices.Precision, typer.Option("--precision", help="fp32, or autocast to bf16 or fp16.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Samples at a time.")]
Seed = Annotated[int, typer.Option("--seed", help="Start of all random numbers.")]
# What a recipe decides, unless the user does.
OptionalModel = Annotated[str | None, typer.Option("--model", help="Name of a model, in place of the recipe's.")]
OptionalPrecision = Annotated[devices.Precision | None, typer.Option("--precision", help="In place of the recipe's.")]
OptionalBatchSize = Annotated[int | None, typer.Option("--batch-size", min=1, help="In place of the recipe's.")]
OptionalSeed = Annotated[int | None, typer.Option("--seed", min=0, help="In place of the recipe's.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what is in the output folder.")]
Config = Annotated[Path | None, typer.Option("--config", help="A run's settings.yaml, in place of a recipe.")]
Set = Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; may be repeated.")]


def settings_of_run(out: Path | None, config: Path | None, recipe: str | None, *, resume: bool) -> Path | None:
    """The settings file that a training goes by: a resumed run's own, where neither a file nor a recipe is given."""
    if resume and config is None and recipe is None and out is not None and (out / "settings.yaml").exists():
        return out / "settings.yaml"
    return config


def overrides_of(chosen: Mapping[str, Any], assignments: Sequence[str]) -> list[str]:
    """Options that stand for settings (None: not given) and those of `--set`, as overrides; the latter come last and win."""
    return [*(f"{key}={value}" for key, value in chosen.items() if value is not None), *assignments]


def say_trained(result: TrainingResult, figures: str, next_command: str) -> None:
    """Prints where the best weights are, how good they are, and what to do with them."""
    typer.echo(f"{result.best_path}: {figures} (step {result.best_step} of {result.steps_done})")
    typer.echo(f"report: {result.folder / 'report.html'}")
    typer.echo(f"next: {next_command.format(weights=result.best_path)}")


def say_predicted(done: Summary, out: Path) -> None:
    """Prints the first results of a batch, how many there are, and where; nothing where there are none."""
    for line in done.lines[:20]:
        typer.echo(line)
    if done.lines:
        typer.echo(f"{done.count} predicted; files in {out}")


def say_failed(failed: Sequence[str], total: int, what: str = "failed") -> None:
    """Prints what is wrong with the second to fifth input that failed; then as `check_failed`, whose error has the first."""
    for error in failed[1:5]:
        typer.echo(f"not used: {error}", err=True)
    check_failed(failed, total, what)


def parse_set(assignments: Sequence[str]) -> dict[str, Any]:
    """`["num_classes=2", "depths=[2, 2]"]` -> keys and values, the values read as YAML.

    Raises:
        InputError: for an entry without "=", or a value that YAML cannot read.
    """
    values = {}
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not key or not equals:
            raise InputError(f"--set {assignment!r} is not of the form key=value")
        try:
            values[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise InputError(f"--set {assignment!r}: {text!r} is not a value that YAML can read") from error
    return values


def parse_size(text: str) -> tuple[int, ...]:
    """ "4x128x128x128" -> (4, 128, 128, 128).

    Raises:
        InputError: for anything but positive whole numbers with x between them.
    """
    parts = text.lower().split("x")
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"size {text!r} is not of the form 3x224x224: channels first, positive numbers, x between them")
    return tuple(map(int, parts))
