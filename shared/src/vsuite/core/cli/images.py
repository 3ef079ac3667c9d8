"""The commands `vsuite train`, `predict` and `evaluate`: image classification."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from vsuite.core.batch import check_failed
from vsuite.core.cli import options
from vsuite.core.errors import InputError

if TYPE_CHECKING:
    from vsuite.core.images.predictor import Prediction
    from vsuite.core.training import TrainingResult

DATA = "Folder of class folders (or of train/ and val/ with them), .csv of path and label, or .npz of images and labels."
OptionalData = Annotated[Path | None, typer.Option("--data", help=DATA)]
OptionalSize = Annotated[int | None, typer.Option("--image-size", min=1, help="Side of the network's input in pixels.")]
ModelOfWeights = Annotated[str | None, typer.Option("--model", help="Name of the model, where the weights do not tell.")]
ImageWeights = Annotated[str, typer.Option("--weights", help="File of weights (ours or published), or a run folder.")]
Pictures = Annotated[bool, typer.Option("--pictures/--no-pictures", help="Draw a sheet of the first images.")]


def train(
    data: OptionalData = None,
    model: options.OptionalModel = None,
    weights: Annotated[str | None, typer.Option("--weights", help="Weights to start from, ours or published; the head may differ.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option("--recipe", help="generic, imagenet, transfer, or a YAML file. [default: generic; with --weights transfer]"),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Run folder [default: runs/DATASET-RECIPE].")] = None,
    config: options.Config = None,
    image_size: OptionalSize = None,
    epochs: Annotated[float | None, typer.Option("--epochs", help="Length of the run, in place of the recipe's.")] = None,
    device: options.Device = "auto",
    precision: options.OptionalPrecision = None,
    batch_size: options.OptionalBatchSize = None,
    seed: options.OptionalSeed = None,
    resume: options.Resume = False,
    overrides: options.Set = [],  # noqa: B006
) -> None:
    """Train an image classifier on a folder, a CSV or arrays, by a recipe."""
    from vsuite.core.images.training import resolve_settings
    from vsuite.core.images.training import train as run_training

    chosen = {
        "model": model,
        "image.size": image_size,
        "training.precision": precision,
        "training.batch_size": batch_size,
        "training.seed": seed,
        "training.epochs": epochs,
        "training.steps": None if epochs is None else "null",
    }
    settings = resolve_settings(
        data=data,
        recipe=recipe,
        config=options.settings_of_run(out, config, recipe, resume=resume),
        overrides=options.overrides_of(chosen, overrides),
        weights=weights,
    )
    out = out or Path("runs") / f"{Path(settings.data).resolve().stem}-{settings.name}"
    result = run_training(settings, out, device=device, resume=resume)
    say_trained(result, "vsuite predict --weights {weights} IMAGES")


def predict(
    inputs: Annotated[list[str], typer.Argument(metavar="IMAGES...", help='Files, folders, patterns such as "*.jpg", or .npz arrays.')],
    weights: ImageWeights,
    out: options.Out = Path("predictions"),
    model: ModelOfWeights = None,
    image_size: OptionalSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 32,
    as_json: Annotated[bool, typer.Option("--json", help="Also write predictions.json.")] = False,
    pictures: Pictures = True,
) -> None:
    """Name what is in images: a CSV of labels and probabilities, and a sheet of the first images."""
    from vsuite.core.images.predictor import Predictor, predict_files

    predictor = Predictor(weights, model=model, device=device, precision=precision, batch_size=batch_size, image_size=image_size)
    found, failed = predict_files(predictor, inputs, out, as_json=as_json, pictures=pictures)
    say_found(found, out / "predictions.csv", "image")
    options.say_failed([*map(str, failed.values())], len(found) + len(failed), "images could not be used")


def evaluate(
    data: Annotated[Path, typer.Option("--data", help=DATA)],
    predictions: Annotated[Path | None, typer.Argument(help="A predictions.csv to compare, in place of --weights.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="File of weights (ours or published), or a run folder.")] = None,
    out: options.Out = Path("evaluation"),
    split: Annotated[str | None, typer.Option("--split", help="train, val or test [default: val where there is one].")] = None,
    model: ModelOfWeights = None,
    image_size: OptionalSize = None,
    device: options.Device = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 32,
) -> None:
    """Compare a classifier, or its predictions, with labels: accuracy, AUC, average precision, confusion matrix."""
    from vsuite.core.images import evaluation

    if (predictions is None) == (weights is None):
        raise InputError("give either --weights or a predictions.csv")
    if weights is not None:
        from vsuite.core.images.predictor import Predictor

        predictor = Predictor(weights, model=model, device=device, precision=precision, batch_size=batch_size, image_size=image_size)
        found = evaluation.evaluate(predictor, data, split=split, out=out)
    else:
        assert predictions is not None
        found = evaluation.evaluate_file(predictions, data, split=split, out=out)
    evaluation.print_evaluation(found)
    typer.echo(f"files in {out}")
    check_failed([*found.failed.values()], len(found.failed) + len(found.samples), "images could not be compared")


def say_trained(result: TrainingResult, next_command: str) -> None:
    """`options.say_trained` with the figures of the whole, without those of single classes."""
    figures = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in result.best_metrics.items() if "/" not in name)
    options.say_trained(result, figures or "the last weights (nothing to validate on)", next_command)


def say_found(found: Sequence[Prediction], table: Path, what: str) -> None:
    """Prints how many images (`what`: "image") were named, where they are listed, and the first of them."""
    typer.echo(f"{len(found)} {what}{'' if len(found) == 1 else 's'} in {table}")
    for one in found[:5]:
        likeliest = "" if len(one.found) == 1 else f"likeliest: {one.classes[int(one.scores.argmax())]} "
        typer.echo(f"  {one.name}: {one.label or 'none'} ({likeliest}{one.probability:.1%})")
