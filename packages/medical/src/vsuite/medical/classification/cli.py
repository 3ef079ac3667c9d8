"""What the commands of `vsuite-medical` do with `--task classification` and `--task pretraining`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from vsuite.core.cli import images, options
from vsuite.core.errors import InputError
from vsuite.core.images.predictor import Precision, Predictor, predict_files
from vsuite.core.training import TrainingResult
from vsuite.core.weights import find_weights, read_metadata

TASKS = ("segmentation", "classification", "pretraining")


def task_of(task: str | None, weights: Sequence[str | Path]) -> str:
    """The task that was asked for, else that of the (first) weights; segmentation where they do not tell."""
    if task is not None or not weights:
        return task or "segmentation"
    note = read_metadata(find_weights(weights[0]))
    return "classification" if "classifier" in note else "pretraining" if "pretraining" in note else "segmentation"


def refuse(task: str, given: dict[str, Any]) -> None:
    """Raises `InputError` for options of another task: name -> whether it was given."""
    wrong = [name for name, value in given.items() if value]
    if wrong:
        raise InputError(f"{', '.join(f'--{name}' for name in wrong)}: not for --task {task}")


def train(
    task: str,
    *,
    data: Path | None,
    recipe: str | None,
    out: Path | None,
    config: Path | None,
    weights: str | None,
    device: str,
    resume: bool,
    freeze: str | None,
    chosen: dict[str, Any],
    overrides: Sequence[str],
) -> None:
    """Trains a classifier or pre-trains an autoencoder, and says where the result is."""
    if task == "pretraining" and freeze is not None:
        refuse(task, {"freeze": freeze})
    given: dict[str, Any] = {
        "data": data,
        "recipe": recipe,
        "config": options.settings_of_run(out, config, recipe, resume=resume),
        "overrides": options.overrides_of({**chosen, "freeze": freeze}, overrides),
        "weights": weights,
    }
    result: TrainingResult
    if task == "classification":
        from vsuite.medical import classification

        classifier = classification.resolve_settings(**given)
        folder = out or _default_folder(classifier.data, classifier.name)
        result = classification.train(classifier, folder, device=device, resume=resume)
        following = "vsuite-medical predict --weights {weights} IMAGES"
    else:
        from vsuite.medical import pretraining

        settings = pretraining.resolve_settings(**given)
        folder = out or _default_folder(settings.data, settings.name)
        result = pretraining.train(settings, folder, device=device, resume=resume)
        following = "vsuite-medical train --task classification --recipe RECIPE --weights {weights} --data DATA"
    images.say_trained(result, following)


def _default_folder(data: str, name: str) -> Path:
    return Path("runs") / f"{Path(data).resolve().stem}-{name}"


def predict(
    inputs: Sequence[str | Path],
    weights: Sequence[str],
    out: Path,
    *,
    device: str,
    precision: Precision,
    batch_size: int | None,
    explain: str | None,
) -> None:
    """Names what is in pictures, and with `explain` draws what the network looked at."""
    if len(weights) != 1:
        raise InputError(f"--task classification takes one --weights; got {len(weights)}")
    _check_not_pretrained(weights[0])
    from vsuite.medical.data import pictures2d  # noqa: F401  makes the core read DICOM and NIfTI
    from vsuite.medical.explain import check_method, explain_files

    predictor = Predictor(weights[0], device=device, precision=precision, batch_size=batch_size or 32)
    if explain is not None:
        check_method(predictor.model, explain)
    found, failed = predict_files(predictor, inputs, out, as_json=True)
    images.say_found(found, out / "predictions.csv", "picture")
    if explain is not None and found:
        paths = explain_files(predictor, inputs, found, out / "explanations", explain)
        typer.echo(f"{len(paths)} explained in {out / 'explanations'}")
    options.say_failed([*map(str, failed.values())], len(found) + len(failed), "pictures could not be used")


def _check_not_pretrained(weights: str) -> None:
    if "pretraining" in read_metadata(find_weights(weights)):
        raise InputError(f"{weights}: is a pre-trained autoencoder, which classifies nothing; train a classifier from it first")


def evaluate(
    predictions: Path | None, weights: str | None, data: Path, out: Path, *, split: str | None, device: str, batch_size: int | None
) -> None:
    """Compares a classifier, or its predictions.csv, with labels."""
    from vsuite.core.images.evaluation import print_evaluation
    from vsuite.medical.classification import evaluation

    if (predictions is None) == (weights is None):
        raise InputError("give either --weights or a predictions.csv")
    if weights is not None:
        _check_not_pretrained(weights)
        predictor = Predictor(weights, device=device, batch_size=batch_size or 32)
        found = evaluation.evaluate(predictor, data, split=split, out=out)
    else:
        assert predictions is not None
        found = evaluation.evaluate_file(predictions, data, split=split, out=out)
    print_evaluation(found)
    typer.echo(f"files in {out}, report: {out / 'report.html'}")
    evaluation.check_complete(found)


def export(weights: str, out: Path, form: str, *, overwrite: bool) -> None:
    """Writes a classifier as ONNX file or MONAI bundle."""
    from vsuite.medical.classification import export as exports

    _check_not_pretrained(weights)
    if form == "bundle":
        typer.echo(str(exports.export_bundle(weights, out, overwrite=overwrite)))
    elif form == "onnx":
        typer.echo(str(exports.export_onnx(weights, out)))
    else:
        raise InputError(f"--format {form}: classifiers are exported as bundle or onnx")


def cut_slices(data: Path, out: Path, *, window: tuple[float, float] | None, fraction: float, labelled: float, seed: int) -> None:
    """Cuts volumes into pictures: of a labelled data set with a table of the structures that each shows, else the pictures alone."""
    from vsuite.medical.data import slices

    if slices.holds_volumes(data):
        typer.echo(f"{len(slices.cut_folder(data, out, window=window, progress=True))} pictures in {out}")
        return
    table = slices.cut_dataset(data, out, window=window, fraction=fraction, labelled=labelled, seed=seed, progress=True)
    typer.echo(str(table))
