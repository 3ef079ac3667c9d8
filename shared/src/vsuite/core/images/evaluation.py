"""Compares what a classifier finds with what is right: figures, files and pictures."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError, unknown
from vsuite.core.evaluation import EvaluationResult, Row, write_json
from vsuite.core.evaluation.writers import json_number
from vsuite.core.files import write_csv
from vsuite.core.images.datasets import ALL, DatasetReader, ImageDataset, Sample, first, read_dataset
from vsuite.core.images.metrics import Interval, Truth, auc_intervals, classification_metrics, confusion_matrix, truth_table
from vsuite.core.images.predictor import PICTURES, Prediction, Predictor, draw_sheet

MOST_CLASSES = 40  # lines of the table on the terminal
MOST_ERRORS = 5


@dataclass(frozen=True)
class ClassifierEvaluation:
    """What an evaluation found.

    Attributes:
        predictions, samples: of the images that were compared, in one order.
        summary: see `classification_metrics`.
        failed: name -> why an image was not compared. An evaluation with any is incomplete: command lines exit non-zero.
        intervals: 95 % bootstrap intervals of the AUCs, under their names in `summary`; empty where none were asked for.
        facts: where it comes from.
    """

    classes: list[str]
    multi_label: bool
    samples: list[Sample]
    predictions: list[Prediction]
    summary: dict[str, float]
    failed: dict[str, str]
    facts: dict[str, str] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)

    @property
    def scores(self) -> NDArray[np.float32]:
        """N, K probabilities."""
        return np.stack([one.scores for one in self.predictions])

    @property
    def truth(self) -> Truth:
        """N, K."""
        return truth_table([sample.labels for sample in self.samples], len(self.classes))

    @property
    def confusion(self) -> NDArray[np.int64] | None:
        """K, K counts, rows true and columns predicted; None if multi-label."""
        if self.multi_label:
            return None
        return confusion_matrix(self.truth.argmax(axis=1), self.scores.argmax(axis=1), len(self.classes))

    @property
    def undefined(self) -> list[str]:
        """Classes without an AUC, since no image or every image is of them."""
        return [name for name in self.classes if math.isnan(self.summary[f"auc/{name}"])]


def evaluate(
    predictor: Predictor,
    data: str | Path,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    resamples: int = 0,
    read: DatasetReader = read_dataset,
) -> ClassifierEvaluation:
    """Runs a classifier on labelled images and compares.

    An image that cannot be used is recorded and does not stop the others.

    Args:
        data: see `read_dataset`. Where the weights name no classes (published ones), the data set's names stand for them, in order.
        split: "train", "val" or "test"; None takes "val" where the data set is divided, else all.
        out: folder for the files of `write_evaluation` and `contact_sheet.png`; None writes none.
        resamples: draws of the bootstrap intervals of the AUCs (see `auc_intervals`); 0 computes none.
        read: what reads the data set; a domain's own knows further layouts.

    Raises:
        InputError: for data that cannot be read, labels that the classifier does not know, and where no image can be used.
    """
    named = predictor.note.named
    dataset = read(data, classes=predictor.classes if named else None, multi_label=predictor.multi_label)
    if len(dataset.classes) != len(predictor.classes):
        raise InputError(f"{data}: has {len(dataset.classes)} classes, and {predictor.source} {len(predictor.classes)} without names")
    chosen, samples = choose_split(dataset, split)
    found: list[tuple[Sample, Prediction]] = []
    failed: dict[str, str] = {}
    for index, result in predictor.predict_samples(samples):
        if isinstance(result, InputError):
            failed[samples[index].name] = str(result)
        else:
            found.append((samples[index], Prediction(result.name, result.scores, dataset.classes, result.multi_label)))
    facts = {"data": str(data), "split": chosen, "weights": predictor.source}
    evaluation = _compare(dataset, found, failed, facts, resamples)
    if out is not None:
        write_evaluation(evaluation, Path(out))
        worst = sorted(found, key=lambda pair: _likelihood(*pair))[:PICTURES]
        title = "the least likely images: what was found; in brackets what is right"
        draw_sheet(predictor, [sample for sample, _ in worst], [one for _, one in worst], Path(out) / "contact_sheet.png", title)
    return evaluation


def evaluate_file(
    predictions: str | Path,
    data: str | Path,
    *,
    split: str | None = None,
    out: str | Path | None = None,
    resamples: int = 0,
    read: DatasetReader = read_dataset,
) -> ClassifierEvaluation:
    """Compares a `predictions.csv` that `vsuite predict` wrote with labelled images, told apart by their paths; see `evaluate`."""
    classes, by_path = _read_predictions(Path(predictions))
    dataset = read(data, classes=classes)
    chosen, samples = choose_split(dataset, split)
    found, failed = [], {}
    for sample in samples:
        scores = by_path.get(_key(sample))
        if scores is None:
            failed[sample.name] = f"{sample.name}: is not in {predictions}"
        else:
            found.append((sample, Prediction(sample.name, scores, classes, dataset.multi_label)))
    evaluation = _compare(dataset, found, failed, {"data": str(data), "split": chosen, "predictions": str(predictions)}, resamples)
    if out is not None:
        write_evaluation(evaluation, Path(out))
    return evaluation


def choose_split(dataset: ImageDataset, split: str | None) -> tuple[str, list[Sample]]:
    """The name and the images of the part that is evaluated."""
    if split is None:
        split = next(name for name in ("val", "test", ALL, *dataset.splits) if dataset.splits.get(name))
    if split not in dataset.splits:
        raise unknown(f"split of {dataset.source}", split, dataset.splits)
    return split, dataset.splits[split]


def _compare(
    dataset: ImageDataset, found: Sequence[tuple[Sample, Prediction]], failed: dict[str, str], facts: dict[str, str], resamples: int
) -> ClassifierEvaluation:
    if not found:
        raise InputError(f"{dataset.source}: no image could be compared; first: {next(iter(failed.values()), 'there is none')}")
    samples, predictions = [sample for sample, _ in found], [one for _, one in found]
    truth = truth_table([sample.labels for sample in samples], len(dataset.classes))
    scores = np.stack([one.scores for one in predictions])
    summary = classification_metrics(scores, truth, dataset.classes, multi_label=dataset.multi_label)
    groups = [sample.group or index for index, sample in enumerate(samples)]
    intervals = auc_intervals(scores, truth, dataset.classes, groups=groups, resamples=resamples) if resamples else {}
    return ClassifierEvaluation(dataset.classes, dataset.multi_label, samples, predictions, summary, failed, facts, intervals)


def _likelihood(sample: Sample, found: Prediction) -> float:
    """Log-probability of what is right."""
    truth = truth_table([sample.labels], len(found.scores))[0]
    chances = np.where(truth, found.scores, 1 - found.scores) if found.multi_label else found.scores[truth]
    return float(np.log(chances.clip(1e-12)).sum())


def _key(sample: Sample) -> str:
    return str(sample.image.resolve()) if isinstance(sample.image, Path) else sample.name


def _read_predictions(path: Path) -> tuple[list[str], dict[str, NDArray[np.float32]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            header, *rows = list(csv.reader(file, strict=True))
        if header[:3] != ["path", "label", "probability"] or len(header) < 4:
            raise ValueError(f"its columns are {first(header)}")
        found = {}
        for name, _, _, *cells in rows:
            scores = np.array(cells, np.float32)
            if len(scores) != len(header) - 3 or not np.isfinite(scores).all():
                raise ValueError(f"{name} has no probability for each class")
            found[name if name.endswith("]") and not Path(name).exists() else str(Path(name).resolve())] = scores
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, csv.Error) as error:
        raise InputError(f"{path}: is no predictions.csv of `vsuite predict`: {error}") from error
    return header[3:], found


# --- files and the terminal ---


def write_evaluation(evaluation: ClassifierEvaluation, folder: Path) -> None:
    """Writes `metrics.json`, `metrics.csv` (one line a metric and class), `predictions.csv`; single-label `confusion.csv`, `.png`."""
    truth, scores = evaluation.truth, evaluation.scores
    right = (scores >= 0.5) == truth if evaluation.multi_label else (scores.argmax(axis=1) == truth.argmax(axis=1))[:, None]
    rows = [
        Row(index, sample.name, {"right": float(right[index].all()), "log_likelihood": _likelihood(sample, one)})
        for index, (sample, one) in enumerate(zip(evaluation.samples, evaluation.predictions, strict=True))
    ]
    counts = {name: _images(evaluation, name) for name in evaluation.summary}
    facts = {
        **evaluation.facts,
        "classes": evaluation.classes,
        "multi_label": evaluation.multi_label,
        "auc_undefined": evaluation.undefined,
        "errors": evaluation.failed,
    }
    if evaluation.intervals:
        facts["intervals"] = {name: [json_number(one.low), json_number(one.high)] for name, one in evaluation.intervals.items()}
    write_json(EvaluationResult(rows, evaluation.summary, counts), folder / "metrics.json", facts)
    write_csv(folder / "metrics.csv", _tidy(evaluation, counts))
    write_csv(folder / "predictions.csv", _compared(evaluation))
    if evaluation.confusion is not None:
        write_confusion(evaluation.confusion, evaluation.classes, folder)


def write_confusion(counts: NDArray[np.int64], classes: Sequence[str], folder: Path, found: str = "predicted") -> None:
    """Writes `confusion.csv` and `confusion.png`: how often each class (a row) was taken for each other (a column).

    Args:
        counts: K, K.
        found: what the table calls the columns.
    """
    from vsuite.core.images.pictures import confusion_picture

    rows = ([name, *row] for name, row in zip(classes, counts.tolist(), strict=True))
    write_csv(folder / "confusion.csv", [[f"true \\ {found}", *classes], *rows])
    confusion_picture(counts, classes, folder / "confusion.png")


def _images(evaluation: ClassifierEvaluation, metric: str) -> int:
    """How many images entered: those of the class for its accuracy, else all."""
    kind, _, name = metric.partition("/")
    return int(evaluation.truth[:, evaluation.classes.index(name)].sum()) if kind == "accuracy" else len(evaluation.samples)


def _tidy(evaluation: ClassifierEvaluation, counts: dict[str, int]) -> list[list[str]]:
    """One line a metric and class; an empty class is the whole, an empty value is not defined. Intervals, if any, come last."""
    table = [["metric", "class", "value", "images", *(["low", "high"] if evaluation.intervals else [])]]
    for metric, value in evaluation.summary.items():
        kind, _, name = metric.partition("/")
        row = [kind, name, "" if math.isnan(value) else repr(value), str(counts[metric])]
        if evaluation.intervals:
            interval = evaluation.intervals.get(metric, Interval(math.nan, math.nan))
            row += ["" if math.isnan(end) else repr(end) for end in (interval.low, interval.high)]
        table.append(row)
    return table


def _compared(evaluation: ClassifierEvaluation) -> list[list[str]]:
    table = [["path", "truth", "label", "probability", "right", *evaluation.classes]]
    for sample, one in zip(evaluation.samples, evaluation.predictions, strict=True):
        truth = ";".join(evaluation.classes[k] for k in sample.labels)
        right = str(int(set(sample.labels) == set(one.found)))
        table.append([sample.name, truth, one.label, f"{one.probability:.6g}", right, *(f"{score:.6g}" for score in one.scores)])
    return table


def print_evaluation(evaluation: ClassifierEvaluation) -> None:
    """Prints the figures, a line a class, and what could not be compared."""
    from vsuite.core.terminal import console, new_table

    out = console()
    overall = new_table("metric", "value", right=("value",))
    for name, value in evaluation.summary.items():
        if "/" not in name:
            overall.add_row(name.replace("_", " "), _text(value) + _range(evaluation, name))
    out.print(overall)
    kinds = list(dict.fromkeys(name.partition("/")[0] for name in evaluation.summary if "/" in name))
    titles = [kind.replace("_", " ") for kind in kinds]
    table = new_table("class", "images", *titles, right=("images", *titles))
    counts = evaluation.truth.sum(axis=0)
    for name, count in list(zip(evaluation.classes, counts, strict=True))[:MOST_CLASSES]:
        values = [f"{kind}/{name}" for kind in kinds]
        table.add_row(name, str(count), *(_text(evaluation.summary[value]) + _range(evaluation, value) for value in values))
    out.print()
    out.print(table)
    if len(evaluation.classes) > MOST_CLASSES:
        out.print(f"and {len(evaluation.classes) - MOST_CLASSES} classes more")
    number = len(evaluation.samples)
    out.print(f"{number} image{'' if number == 1 else 's'} ({evaluation.facts.get('split', 'all')})")
    if evaluation.undefined:
        out.print(f"AUC not defined, and left out of the mean, for classes of no or of every image: {first(evaluation.undefined)}")
    for error in list(evaluation.failed.values())[:MOST_ERRORS]:
        out.print(f"not compared: {error}")
    if len(evaluation.failed) > MOST_ERRORS:
        out.print(f"not compared: {len(evaluation.failed) - MOST_ERRORS} more; metrics.json names all")


def _range(evaluation: ClassifierEvaluation, metric: str) -> str:
    """ " (0.71 to 0.83)" where there is an interval."""
    interval = evaluation.intervals.get(metric)
    return "" if interval is None or math.isnan(interval.low) else f" ({interval.low:.4f} to {interval.high:.4f})"


def _text(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"
