"""Compares a folder of predicted label maps with the references: figures, files, pictures and a report.

Written are `summary.json` in nnU-Net's schema, `metrics.csv` (one line a case and structure), `metrics.json`, MONAI's
`<metric>_raw.csv` and `<metric>_summary.csv`, and with pictures `pictures/<case>.png` and `report.html`, worst cases first.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.evaluation.metrics import mean
from vsuite.medical.data.datasets import read_json
from vsuite.medical.data.files import ENDINGS, WITHOUT_GRID, ending_of, is_image, read_image, read_label, stem_of
from vsuite.medical.data.geometry import FloatArray, difference, spacing_of
from vsuite.medical.data.labels import check_ids, first_items, ids_in, labels_by_name
from vsuite.medical.metrics import Convention, Label, Labels, Scores, compare_label_maps, find_convention

LABEL_FILES = ("labels.json", "plan.json", "dataset.json")
_DRAWING = threading.Lock()  # matplotlib's fonts are shared between threads


@dataclass(frozen=True)
class CaseResult:
    """One case: its scores by structure, or the error that kept it from being compared.

    `no_picture` says why a picture that was asked for is not there; the scores are none the worse for it.
    """

    name: str
    reference: Path
    prediction: Path | None
    scores: Mapping[str, Scores]
    error: str = ""
    no_picture: str = ""

    @property
    def mean_dice(self) -> float:
        """Over the structures with a defined Dice; nan where there is none."""
        return mean([s.dice for s in self.scores.values()])


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        cases: by name, those with an error included.
        labels: name -> id or ids, without the background and the id to ignore.
        unused: names of predictions that have no reference.
    """

    cases: list[CaseResult]
    labels: dict[str, int | list[int]]
    convention: Convention
    nsd_tolerance_mm: float
    unused: list[str]

    @property
    def failed(self) -> list[CaseResult]:
        """The cases with an error. An evaluation with any is incomplete: command lines exit non-zero."""
        return [case for case in self.cases if case.error]

    @property
    def compared(self) -> list[CaseResult]:
        return [case for case in self.cases if not case.error]

    def values(self, metric: str, structure: str) -> list[float]:
        """One attribute of `Scores` of one structure, in every case that was compared."""
        return [getattr(case.scores[structure], metric) for case in self.compared]

    def count(self, status: str, structure: str) -> int:
        """In how many cases a structure has a status such as "missed"."""
        return sum(case.scores[structure].status == status for case in self.compared)

    @property
    def mean_dice(self) -> float:
        """The mean over structures of their mean over cases; nan where no Dice is defined."""
        return mean([mean(self.values("dice", name)) for name in self.labels])


def evaluate_folder(
    predictions: str | Path,
    references: str | Path,
    *,
    labels: Labels | str | Path | None = None,
    convention: str = "nnunet",
    nsd_tolerance_mm: float = 1.0,
    out: str | Path | None = None,
    pictures: bool = True,
    images: str | Path | None = None,
    missing_as_empty: bool = False,
    overwrite: bool = False,
    workers: int | None = None,
) -> Evaluation:
    """Compares every reference with the prediction of the same name.

    A case that cannot be compared (no prediction, another grid, ids outside the label map, a damaged file) is recorded
    with its error and does not stop the others.

    Args:
        predictions, references: folders of NIfTI label maps, or one file each.
        labels: name -> id, or ids of a region; or a file that says so (labels.json, dataset.json, plan.json, weights);
            None looks for such a file beside the predictions and the references, else takes the ids that occur.
        convention: what empty masks count as; a name of `vsuite.medical.metrics.CONVENTIONS`.
        nsd_tolerance_mm: of the normalised surface Dice.
        out: folder for the result files; None writes none.
        pictures: whether to draw each case, and write the report.
        images: folder of the images that the pictures show; None looks for one beside the references (imagesTr for
            labelsTr), else the pictures show contours alone.
        missing_as_empty: compare a reference without a prediction with an empty one, instead of recording an error.
        overwrite: replace files in `out` that are not of an earlier evaluation; those of one are replaced in any case.
        workers: threads; None takes one a processor, four at most.

    Raises:
        InputError: for folders without label maps, unreadable label names and files in the way, before the first case is
            compared; and if no case could be compared. Nothing is written then.
    """
    from vsuite.medical.evaluation_files import check_place, write_evaluation

    rules = find_convention(convention)
    if nsd_tolerance_mm < 0 or not math.isfinite(nsd_tolerance_mm):
        raise InputError(f"the NSD's tolerance must be a distance in mm from 0 up; got {nsd_tolerance_mm}")
    wanted, found = _label_maps(Path(references)), _label_maps(Path(predictions))
    if Path(references).is_file() and Path(predictions).is_file():  # a pair of files need not share a name
        found = dict(zip(wanted, found.values(), strict=True))
    if not wanted.keys() & found.keys() and not missing_as_empty:
        raise InputError(
            f"{predictions}: none of its {len(found)} cases ({first_items(found)}) is among the {len(wanted)} references in {references} "
            f"({first_items(wanted)})"
        )
    names = (
        read_labels(labels)
        if labels is not None
        else _find_labels(Path(predictions), Path(references), [*wanted.values(), *found.values()])
    )
    images_folder = _beside(Path(references)) if images is None else Path(images)
    if images is not None and not Path(images).is_dir():
        raise InputError(f"{images}: no such folder of images")
    folder = None if out is None else Path(out)
    new_folders: list[Path] = []
    if folder is not None:
        check_place(folder, overwrite=overwrite)
        new_folders = _make_writable(folder)

    def compare(name: str) -> CaseResult:
        case = CaseResult(name, wanted[name], found.get(name), {})
        picture = folder / "pictures" / f"{name}.png" if folder is not None and pictures else None
        try:
            return _compare(case, names, rules, nsd_tolerance_mm, missing_as_empty, picture, images_folder)
        except InputError as error:
            return replace(case, error=str(error))
        except Exception as error:  # whatever is wrong with one case must not lose the others
            return replace(case, error=f"{case.prediction}: {type(error).__name__}: {error}")

    with ThreadPoolExecutor(workers or min(4, os.cpu_count() or 1)) as pool:
        cases = list(pool.map(compare, sorted(wanted)))
    shown = {name: ids for name, ids in names.items() if name not in ("background", "ignore")}
    evaluation = Evaluation(cases, shown, rules, nsd_tolerance_mm, sorted(found.keys() - wanted.keys()))
    if not evaluation.compared:
        for made in new_folders:
            with contextlib.suppress(OSError):  # not empty: others use it
                made.rmdir()
        first = evaluation.failed[0].error
        raise InputError(first if len(cases) == 1 else f"{predictions}: none of its {len(cases)} cases could be compared; first: {first}")
    if folder is not None:
        write_evaluation(evaluation, folder, with_report=pictures)
    return evaluation


def _compare(
    case: CaseResult,
    labels: Mapping[str, int | list[int]],
    rules: Convention,
    nsd_tolerance_mm: float,
    missing_as_empty: bool,
    picture: Path | None,
    images: Path | None,
) -> CaseResult:
    reference = read_label(case.reference)
    check_ids(reference.array, labels, case.reference)
    if case.prediction is None:
        if not missing_as_empty:
            raise InputError(f"{case.name}: no prediction for the reference {case.reference}")
        prediction = np.zeros_like(reference.array)
    else:
        volume = read_label(case.prediction, like=reference)
        prediction = volume.array
        if ending_of(case.reference) in WITHOUT_GRID:  # a PNG lies where the image does, and so does what was predicted
            reference.affine = volume.affine
        if gap := difference(prediction.shape[1:], volume.affine, reference.array.shape[1:], reference.affine):
            raise InputError(f"{case.prediction}: not on the grid of {case.reference} (prediction against reference): {gap}")
        check_ids(prediction, labels, case.prediction)
    structures = {name: ids for name, ids in labels.items() if name not in ("background", "ignore")}
    ignore = labels.get("ignore")
    scores = compare_label_maps(
        prediction[0],
        reference.array[0],
        structures,
        spacing_of(reference.affine).tolist(),
        convention=rules.name,
        nsd_tolerance_mm=nsd_tolerance_mm,
        ignore=ignore if isinstance(ignore, int) else None,
    )
    result = replace(case, scores=scores)
    if picture is not None:
        try:
            _draw(result, reference.array[0], prediction[0], reference.affine, structures, picture, images)
        except Exception as error:  # a damaged image or a full disk, say: the scores stand
            return replace(result, no_picture=str(error) or type(error).__name__)
    return result


def _draw(
    case: CaseResult, reference: Label, prediction: Label, affine: FloatArray, labels: Labels, path: Path, images: Path | None
) -> None:
    from vsuite.medical.pictures import case_picture

    title = case.name if math.isnan(case.mean_dice) else f"{case.name}   mean Dice {case.mean_dice:.3f}"
    image = _image_of(case.name, images, reference.shape)
    with _DRAWING:
        case_picture(image, reference, prediction, affine, path, title, labels=labels)


def _image_of(name: str, images: Path | None, shape: Sequence[int]) -> Any:
    """The first channel of a case's image; None where there is no such file, or one of another shape."""
    candidates = [] if images is None else [images / f"{name}{channel}{ending}" for channel in ("", "_0000") for ending in ENDINGS]
    for path in candidates:
        if path.is_file():
            array = read_image(path).array[0]
            return array if array.shape == tuple(shape) else None
    return None


def _beside(references: Path) -> Path | None:
    """The folder of images that goes with a folder of labels: imagesTr beside labelsTr."""
    folder = references if references.is_dir() else references.parent
    other = folder.parent / folder.name.replace("label", "image")
    return other if other != folder and other.is_dir() else None


def _label_maps(path: Path) -> dict[str, Path]:
    """Case name -> file."""
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    files = [path] if path.is_file() else sorted(p for p in path.iterdir() if is_image(p))
    if not files:
        raise InputError(f"{path}: no label maps ({', '.join(ENDINGS)}) in it")
    return {stem_of(p): p for p in files}


def _make_writable(folder: Path) -> list[Path]:
    """The folders that had to be made, innermost first."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written: {error.strerror or error}") from error
    if not os.access(folder, os.W_OK):
        raise InputError(f"{folder}: cannot be written to")
    return made


# --- names of the labels ---


def read_labels(source: Labels | str | Path) -> dict[str, int | list[int]]:
    """Labels as name -> id or ids, from a mapping or a file.

    Files are labels.json, dataset.json (nnU-Net's or Decathlon's), plan.json, or our weights (.safetensors).
    """
    if not isinstance(source, str | Path):
        return _structures(source, "labels")
    path = Path(source)
    if path.suffix == ".safetensors":
        from vsuite.core.weights import read_metadata

        content: Any = read_metadata(path).get("plan")
    else:
        content = read_json(path)
    if isinstance(content, dict) and isinstance(content.get("labels"), dict):
        content = content["labels"]
    if not isinstance(content, dict):
        raise InputError(f"{path}: names no labels; expected name -> id, as in labels.json or dataset.json")
    return _structures(content, str(path))


def _structures(given: Mapping[Any, Any], source: str) -> dict[str, int | list[int]]:
    """The labels without the background, from name -> id or ids, or from Decathlon's id -> name."""
    labels, problems = labels_by_name(given)
    if problems:
        raise InputError(f"{source}: {'; '.join(problems)}")
    del labels["background"]
    if not labels.keys() - {"ignore"}:
        raise InputError(f"{source}: names no label beside the background")
    return labels


def _find_labels(predictions: Path, references: Path, files: Sequence[Path]) -> dict[str, int | list[int]]:
    """From the first file that names them beside the predictions or the references; else the ids that occur in the files."""
    folders = [path if path.is_dir() else path.parent for path in (predictions, references)]
    for folder in (*folders, folders[1].parent):
        for name in LABEL_FILES:
            if (folder / name).is_file():
                return read_labels(folder / name)
    ids: set[int] = set()
    for path in files:
        try:
            ids |= ids_in(read_label(path).array)
        except InputError:
            continue  # its case will say so
    if not ids - {0}:
        raise InputError(f"{references}: nothing names the labels and the label maps hold no structure; give the labels")
    return {f"label {i}": i for i in sorted(ids - {0})}
