"""PSNR and SSIM of restored pictures, every figure with the conventions that it depends on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vsuite.core.batch import complaint
from vsuite.core.errors import InputError
from vsuite.core.evaluation import EvaluationResult, Evaluator
from vsuite.core.evaluation.writers import json_number
from vsuite.core.files import write_csv, write_text
from vsuite.core.terminal import console, new_table
from vsuite.restoration.data.pictures import Picture, list_pictures, read_rgb
from vsuite.restoration.inference import Restorer
from vsuite.restoration.metrics import PsnrSsim, describe_size
from vsuite.restoration.resize import Convention, crop_to_multiple, imresize

Method = Callable[[Picture], Picture]
"""Low resolution (H, W, 3), uint8 -> high resolution."""

LARGEST_WHOLE = 4096  # pixels a side of low resolution up to which figures are those of the whole picture, without tiles

LABELS = {"psnr_y": "PSNR-Y (dB)", "ssim_y": "SSIM-Y", "psnr_rgb": "PSNR-RGB (dB)", "ssim_rgb": "SSIM-RGB"}


@dataclass(frozen=True)
class Conventions:
    """What a PSNR depends on beside the pictures.

    Attributes:
        scale: references are cropped at the bottom and right to multiples of it.
        crop: pixels left out along each side.
        channels: measured: "y", "rgb" or "both". round_y: whether Y is rounded to whole numbers first.
        low: how the low resolution was made.
    """

    scale: int
    crop: int
    channels: Literal["y", "rgb", "both"] = "both"
    round_y: bool = False
    low: str = "not known"

    def describe(self, column: str) -> str:
        """The conventions of one figure, for people."""
        parts = [f"x{self.scale}", f"crop {self.crop}", "pictures rounded to 8 bits"]
        if column.endswith("_y"):
            parts.append(f"Y of BT.601 studio range, {'rounded' if self.round_y else 'not rounded'}")
        return ", ".join([*parts, f"low resolution: {self.low}"])


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        results: by method, "restored" for a folder of pictures; the last is what was to be evaluated, others are baselines.
        sizes: height and width of each reference, cropped to a multiple of the scale, by the index of its row.
        failed: a line about each picture that could not be compared.
    """

    conventions: Conventions
    results: Mapping[str, EvaluationResult]
    sizes: Mapping[int, tuple[int, int]]
    failed: list[str] = field(default_factory=list)


def evaluate_folder(restored: str | Path, reference: str | Path, conventions: Conventions) -> Evaluation:
    """Compares restored pictures with the references of the same name.

    A restored picture may carry a suffix: "baby_x4.png" belongs to "baby.png".

    Raises:
        InputError: for missing folders, and where two pictures belong to one reference.
    """
    references = list_pictures(reference)
    partners = _match(list_pictures(restored), references)
    evaluator, sizes, failed = Evaluator([_metric(conventions)]), {}, []
    for index, path in enumerate(references):
        try:
            if path not in partners:
                raise InputError(f"{path}: no restored picture of this name in {restored}")
            found, high = read_rgb(partners[path]), crop_to_multiple(read_rgb(path), conventions.scale)
            sizes[index] = high.shape[:2]
            try:
                evaluator.update(index, _name(path, Path(reference)), prediction=found, reference=high)
            except InputError as error:
                raise InputError(f"{partners[path]}: {error}") from error
        except InputError as error:
            failed.append(str(error))
    return Evaluation(conventions, {"restored": evaluator.compute()}, sizes, failed)


def _match(restored: list[Path], references: list[Path]) -> dict[Path, Path]:
    """Reference -> restored picture."""
    by_stem: dict[str, Path] = {}
    for path in references:
        if path.stem in by_stem:
            raise InputError(f"{path}: has the same name as {by_stem[path.stem]}")
        by_stem[path.stem] = path
    partners: dict[Path, Path] = {}
    for path in restored:
        stem = path.stem
        while stem and stem not in by_stem:
            stem = stem.rpartition("_")[0]
        if not stem:
            continue
        if by_stem[stem] in partners:
            raise InputError(f"{path} and {partners[by_stem[stem]]} both belong to {by_stem[stem]}")
        partners[by_stem[stem]] = path
    return partners


def evaluate_methods(
    reference: str | Path,
    methods: Mapping[str, Method],
    conventions: Conventions,
    *,
    low: str | Path | None = None,
    resize: Convention = "A",
    progress: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Makes low resolution of high, restores it by every method, and compares.

    Args:
        reference: folder of high-resolution pictures.
        methods: name -> method; `resize_method("bicubic", scale)` is one.
        low: folder of stored low resolution, same names; None makes it by bicubic `resize`.
        progress: takes the name of each picture before it is restored.
    """
    made = f"bicubic, convention {resize}" if low is None else f"files of {low}"
    conventions = Conventions(conventions.scale, conventions.crop, conventions.channels, conventions.round_y, made)
    references = list_pictures(reference)
    stored = {} if low is None else _match(list_pictures(low), references)
    evaluators, sizes, failed = {name: Evaluator([_metric(conventions)]) for name in methods}, {}, []
    for index, path in enumerate(references):
        progress(path.name)
        try:
            high = crop_to_multiple(read_rgb(path), conventions.scale)
            sizes[index] = high.shape[:2]
            if low is not None and path not in stored:
                raise InputError(f"{path}: no picture of this name in {low}")
            small = imresize(high, 1 / conventions.scale, convention=resize) if low is None else read_rgb(stored[path])
            restored = {name: method(small) for name, method in methods.items()}
            for name, picture in restored.items():  # all before the first is measured: rows of all methods are of the same pictures
                if picture.shape != high.shape:
                    raise InputError(f"{name} makes {describe_size(picture)} of {describe_size(small)}, not {describe_size(high)}")
            for name, picture in restored.items():
                evaluators[name].update(index, _name(path, Path(reference)), prediction=picture, reference=high)
        except InputError as error:
            failed.append(complaint(error, path))
    return Evaluation(conventions, {name: evaluator.compute() for name, evaluator in evaluators.items()}, sizes, failed)


def _name(picture: Path, folder: Path) -> str:
    """Its path in the folder, without the suffix."""
    return picture.relative_to(folder).with_suffix("").as_posix() if folder.is_dir() else picture.stem


def resize_method(kernel: Literal["bicubic", "lanczos"], scale: int) -> Method:
    """Plain enlargement, convention A, as a baseline."""
    return lambda low: imresize(low, scale, kernel=kernel)


def model_method(weights: str | None, scale: int | None, device: str = "auto") -> tuple[str, Method, int]:
    """A model as a method: its name, itself, and its scale.

    Args:
        weights: file, run folder or name; None takes the shipped small model of the scale (x4 where that is None too).

    Raises:
        InputError: for weights of something else, or of another scale.
    """
    restorer = Restorer(weights, scale=scale, device=device, precision="fp32", tile=LARGEST_WHOLE)
    return restorer.name, restorer.restore, restorer.scale


def _metric(conventions: Conventions) -> PsnrSsim:
    return PsnrSsim(conventions.crop, channels=conventions.channels, round_y=conventions.round_y)


def print_evaluation(evaluation: Evaluation) -> None:
    """Prints the means: a line a figure, a column a method, the conventions at the end."""
    names = list(evaluation.results)
    first = evaluation.results[names[0]]
    table = new_table("figure", *names, "convention", right=names, title=f"mean of {len(first.rows)} pictures")
    for column in first.summary:
        digits = 2 if column.startswith("psnr") else 4
        values = [f"{result.summary[column]:.{digits}f}" for result in evaluation.results.values()]
        table.add_row(LABELS[column], *values, evaluation.conventions.describe(column))
    console().print(table)


def write_evaluation(evaluation: Evaluation, folder: str | Path) -> None:
    """Writes `metrics.csv`, a line a picture and a column a figure, and `metrics.json`, the means and the conventions of each.

    The figures of what was to be evaluated come first; those of baselines carry the method's name: "bicubic_psnr_y".

    Raises:
        InputError: where no picture could be compared.
    """
    if not any(result.rows for result in evaluation.results.values()):
        raise InputError(f"no picture could be compared; first: {evaluation.failed[0]}")
    *baselines, evaluated = evaluation.results
    columns = [(evaluated, column, column) for column in _columns(evaluation)]
    columns += [(method, column, f"{method}_{column}") for method in baselines for column in _columns(evaluation)]
    values = {(method, row.index): row.values for method, result in evaluation.results.items() for row in result.rows}
    convention = evaluation.conventions.describe(columns[0][1])  # of Y, where that is measured: it says what those of RGB say, and more
    lines: list[list[Any]] = [["image", "width", "height", *(title for _, _, title in columns), "convention"]]
    for row in evaluation.results[evaluated].rows:
        height, width = evaluation.sizes[row.index]
        figures = [values[method, row.index][column] for method, column, _ in columns]
        lines.append([row.name, width, height, *("" if math.isnan(figure) else repr(figure) for figure in figures), convention])
    write_csv(Path(folder) / "metrics.csv", lines)
    content: dict[str, Any] = {
        "conventions": {column: evaluation.conventions.describe(column) for column in _columns(evaluation)},
        "pictures": {method: len(result.rows) for method, result in evaluation.results.items()},
        "means": {method: {k: json_number(v) for k, v in result.summary.items()} for method, result in evaluation.results.items()},
        "failed": evaluation.failed,
    }
    write_text(Path(folder) / "metrics.json", json.dumps(content, indent=2, allow_nan=False) + "\n")


def _columns(evaluation: Evaluation) -> list[str]:
    return list(dict.fromkeys(column for result in evaluation.results.values() for column in result.summary))
