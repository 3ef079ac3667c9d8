"""Labelled images: a folder of class folders, a CSV of paths and labels, or `.npz` arrays."""

from __future__ import annotations

import csv
import re
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError, unknown
from vsuite.core.images.files import SUFFIXES, check_unit_range, is_image, read_image

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
ALL = "all"  # the split of a data set that is not divided
RESERVED = ("path", "split", "group")  # columns of a CSV that are no classes


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its classes.

    Attributes:
        name: what tables call it: the path as found, or the array's name and index.
        image: a file, or an array H, W or H, W, C.
        labels: indices into the data set's classes; exactly one unless it is multi-label.
        group: what it belongs to (its patient, say), where that is known: groups are never divided between splits.
    """

    name: str
    image: Path | NDArray[Any]
    labels: tuple[int, ...]
    group: str = ""


@dataclass(frozen=True)
class ImageDataset:
    """What `read_dataset` found.

    Attributes:
        source: the folder or file.
        classes: names, in the order of the model's outputs.
        multi_label: whether an image may have any number of classes.
        splits: "train", "val" and "test" as far as they are there, or "all".
    """

    source: Path
    classes: list[str]
    multi_label: bool
    splits: dict[str, list[Sample]]

    def describe(self) -> str:
        """One line."""
        kind = "multi-label, " if self.multi_label else ""
        parts = ", ".join(f"{len(samples)} {split}" for split, samples in self.splits.items() if samples)
        return f"{self.source}: {kind}{len(self.classes)} classes ({first(self.classes)}); images: {parts}"


class DatasetReader(Protocol):
    """`read_dataset`, or a domain's own function that knows further layouts."""

    def __call__(self, source: str | Path, *, classes: Sequence[str] | None = None, multi_label: bool | None = None) -> ImageDataset: ...


def read_dataset(source: str | Path, *, classes: Sequence[str] | None = None, multi_label: bool | None = None) -> ImageDataset:
    """Reads the names and labels of a data set; images in files are not opened yet.

    * A folder of class folders, or of `train`, `val` and `test` with class folders in each.
    * A CSV with the columns `path` and `label` (several separated by ";"), or `path` and one column of 0 and 1 a class; an
      optional column `split`, and an optional column `group` (see `Sample`). Relative paths start at the CSV's folder.
    * A `.npz` with `images` (N, H, W or N, H, W, C) and `labels` (N whole numbers from 0, or N, K of 0 and 1), or
      `train_images`, `train_labels`, `val_images` and so on; optionally `class_names`.

    Args:
        classes: the names that are allowed, in order, such as those of a model; None takes those that occur, sorted.
        multi_label: None decides: several labels on an image, or one column a class.

    Raises:
        InputError: naming the file (and line) for everything that is wrong.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path, classes, multi_label)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder")
    if path.suffix.lower() == ".csv":
        return _read_csv(path, classes, multi_label)
    if path.suffix.lower() == ".npz":
        return _read_npz(path, classes, multi_label)
    raise InputError(f"{path}: a data set is a folder of class folders, a .csv or a .npz file")


def divide(dataset: ImageDataset, fraction: float, seed: int) -> ImageDataset:
    """A data set with "train" and "val": where it brings no "val", that share of each class is drawn; the rest stays in "train".

    Of every class at least one image is kept to train on. Multi-label sets, and sets whose images belong to groups, are drawn
    from as a whole; of the latter whole groups.
    """
    if dataset.splits.get("val"):
        return dataset
    samples = dataset.splits.get("train") or dataset.splits.get(ALL, [])
    grouped = any(sample.group for sample in samples)
    units: dict[tuple[int, ...], dict[Any, list[int]]] = {}  # what is drawn together, by class where classes are drawn from in turn
    for index, sample in enumerate(samples):
        kind = () if dataset.multi_label or grouped else sample.labels
        units.setdefault(kind, {}).setdefault(sample.group or index, []).append(index)
    rng = np.random.default_rng(seed)
    held: set[int] = set()
    for _, members in sorted(units.items()):
        together = list(members.values())
        count = min(round(fraction * len(together)), len(together) - 1)
        if fraction > 0 and count == 0 and len(together) > 1:
            count = 1
        held.update(index for unit in rng.permutation(len(together))[:count] for index in together[unit])
    parts = {
        "train": [sample for index, sample in enumerate(samples) if index not in held],
        "val": [sample for index, sample in enumerate(samples) if index in held],
    }
    return replace(dataset, splits=parts | {"test": dataset.splits["test"]} if "test" in dataset.splits else parts)


def check_for_training(dataset: ImageDataset) -> None:
    """Raises `InputError` where there is nothing to train on, fewer than two classes, or a class without images."""
    samples = dataset.splits.get("train", [])
    if not samples:
        raise InputError(f"{dataset.source}: there are no images to train on")
    if len(dataset.classes) < 2 and not dataset.multi_label:
        raise InputError(f"{dataset.source}: two classes or more are needed; there is {first(dataset.classes)}")
    counts = np.bincount([label for sample in samples for label in sample.labels], minlength=len(dataset.classes))
    empty = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
    if empty:
        raise InputError(f"{dataset.source}: no image to train on of {first(empty)}; each class needs one")


def check_images(samples: Sequence[Sample], most: int) -> list[tuple[int, int]]:
    """Decodes up to `most` images, spread evenly, and returns their sizes (H, W); missing and empty files are found among all.

    Raises:
        InputError: naming the first that cannot be used, and how many there are.
    """
    files = [sample.image for sample in samples if isinstance(sample.image, Path)]
    missing = [
        f"{path}: {'is empty' if path.is_file() else 'no such file'}" for path in files if not path.is_file() or not path.stat().st_size
    ]
    if missing:
        raise InputError(_first_of(missing, "images cannot be read"))
    chosen = [samples[i] for i in np.linspace(0, len(samples) - 1, min(most, len(samples))).astype(int)]

    def size(sample: Sample) -> tuple[int, int] | str:
        try:
            height, width, _ = read_image(sample.image).shape
            return height, width
        except InputError as error:
            return str(error)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(size, chosen))
    problems = [result for result in found if isinstance(result, str)]
    if problems:
        raise InputError(_first_of(problems, "images cannot be used"))
    return [result for result in found if not isinstance(result, str)]


def first(names: Sequence[str], most: int = 5) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _first_of(problems: Sequence[str], what: str) -> str:
    return problems[0] if len(problems) == 1 else f"{problems[0]} ({len(problems)} {what})"


def natural(name: str) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key that puts "10" after "9"; the name itself decides between "1" and "01"."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", name) if part], name


def _indices(names: Iterable[str], classes: Sequence[str], where: str) -> tuple[int, ...]:
    position = {name: index for index, name in enumerate(classes)}
    found = []
    for name in names:
        if name not in position:
            raise InputError(f"{where}: {unknown('label', name, classes)}")
        found.append(position[name])
    return tuple(dict.fromkeys(found))


# --- folders ---


def _read_folder(root: Path, classes: Sequence[str] | None, multi_label: bool | None) -> ImageDataset:
    if multi_label:
        raise InputError(f"{root}: class folders give each image one label; a multi-label set is a .csv or .npz file")
    folders = _subfolders(root)
    divided = bool(folders) and all(folder.name.lower() in SPLITS for folder in folders) and any(_subfolders(folder) for folder in folders)
    parts = _divided(folders) if divided else {ALL: _class_files(root)}
    if classes is None:
        training = parts.get("train", next(iter(parts.values())))
        classes = sorted(training, key=natural)
    splits: dict[str, list[Sample]] = {}
    for split, found in parts.items():
        splits[split] = []
        for name in sorted(found, key=natural):
            labels = _indices([name], classes, str(root / split / name) if divided else str(root / name))
            splits[split] += [Sample(str(path), path, labels) for path in found[name]]
    return ImageDataset(root, list(classes), False, splits)


def _divided(folders: Sequence[Path]) -> dict[str, dict[str, list[Path]]]:
    """Split -> class -> its images."""
    chosen: dict[str, Path] = {}
    for folder in folders:
        split = SPLITS[folder.name.lower()]
        if split in chosen:
            raise InputError(f"{folder}: {chosen[split].name} beside it is the split {split!r} as well; one folder a split is expected")
        chosen[split] = folder
    return {split: _class_files(folder) for split, folder in chosen.items()}


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Class -> its images, those in subfolders included."""
    folders = _subfolders(root)
    if not folders:
        raise InputError(f"{root}: holds no class folders")
    found = {folder.name: sorted(path for path in folder.rglob("*") if is_image(path)) for folder in folders}
    empty = [str(root / name) for name, paths in found.items() if not paths]
    if empty:
        raise InputError(f"{empty[0]}: a class without images ({', '.join(SUFFIXES)})")
    return found


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


# --- CSV ---


def _read_csv(path: Path, classes: Sequence[str] | None, multi_label: bool | None) -> ImageDataset:
    rows, columns = _rows(path)
    listed = "label" in columns
    class_columns = [] if listed else [name for name in columns if name not in RESERVED]
    if "path" not in columns or not (listed or class_columns):
        raise InputError(f"{path}: needs the columns path and label, or path and one column of 0 and 1 a class; it has {first(columns, 8)}")
    names = [_listed(row) if listed else _marked(row, class_columns, f"{path}, line {line}") for line, row in rows]
    if multi_label is None:
        multi_label = not listed or any(len(labels) != 1 for labels in names if labels)
    if classes is None:
        classes = class_columns or sorted({name for labels in names for name in labels}, key=natural)
    splits: dict[str, list[Sample]] = {}
    for (line, row), labels in zip(rows, names, strict=True):
        where = f"{path}, line {line}"
        if not row["path"]:
            raise InputError(f"{where}: no path")
        if not multi_label and len(labels) != 1:
            raise InputError(f"{where}: one label is expected; got {len(labels)}")
        split = _split_of(row["split"], where) if "split" in columns else ALL
        group = row.get("group", "")
        splits.setdefault(split, []).append(Sample(row["path"], path.parent / row["path"], _indices(labels, classes, where), group))
    return ImageDataset(path, list(classes), multi_label, splits)


def _rows(path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[str]]:
    """(line number, column -> cell) of each row, and the columns."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            lines = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: is no CSV file (UTF-8): {error}") from error
    if len(lines) < 2:
        raise InputError(f"{path}: holds no images: a line of column names and at least one more are expected")
    columns = [name.lower() if name.lower() in (*RESERVED, "label") else name for name in lines[0][1]]
    if len(set(columns)) != len(columns):
        raise InputError(f"{path}: two columns have the same name: {first(columns, 8)}")
    for line, cells in lines[1:]:
        if len(cells) != len(columns):
            raise InputError(f"{path}, line {line}: {len(columns)} cells are expected; got {len(cells)}")
    return [(line, dict(zip(columns, cells, strict=True))) for line, cells in lines[1:]], columns


def _listed(row: dict[str, str]) -> list[str]:
    return [name.strip() for name in row["label"].split(";") if name.strip()]


def _marked(row: dict[str, str], columns: Sequence[str], where: str) -> list[str]:
    wrong = next((name for name in columns if row[name] not in ("0", "1", "0.0", "1.0")), None)
    if wrong is not None:
        raise InputError(f"{where}: column {wrong!r} must hold 0 or 1; got {row[wrong]!r}")
    return [name for name in columns if row[name] in ("1", "1.0")]


def _split_of(text: str, where: str) -> str:
    if text.lower() not in SPLITS:
        raise InputError(f"{where}: {unknown('split', text, SPLITS)}")
    return SPLITS[text.lower()]


# --- arrays ---


def _read_npz(path: Path, classes: Sequence[str] | None, multi_label: bool | None) -> ImageDataset:
    arrays = read_arrays(path)
    pairs = {ALL: ("images", "labels")} | {SPLITS[name]: (f"{name}_images", f"{name}_labels") for name in ("train", "val", "test")}
    present = {split: names for split, names in pairs.items() if names[0] in arrays}
    if not present:
        raise InputError(f"{path}: holds no array `images` or `train_images`; it has {first(sorted(arrays), 8)}")
    labels: dict[str, NDArray[Any]] = {}
    for split, (images, name) in present.items():
        if name not in arrays:
            raise InputError(f"{path}: {images} has no {name} beside it")
        labels[split] = _check_labels(arrays[name], len(arrays[images]), f"{path}: {name}")
        check_array(arrays[images], f"{path}: {images}")
    if len({array.ndim for array in labels.values()}) > 1:
        raise InputError(f"{path}: the labels of its parts differ in kind")
    marked = next(iter(labels.values())).ndim == 2
    if multi_label is not None and multi_label != marked and not multi_label:
        raise InputError(f"{path}: labels N, K are multi-label; one label an image is N whole numbers")
    number = max(array.shape[1] if marked else int(array.max()) + 1 for array in labels.values())
    noted = [str(name) for name in arrays["class_names"]] if "class_names" in arrays else None
    names = list(noted if noted is not None else classes if classes is not None else map(str, range(number)))
    if number > len(names) or (marked and number != len(names)):
        raise InputError(f"{path}: its labels are of {number} classes, but there are names for {len(names)}")
    allowed = names if classes is None else list(classes)
    splits = {}
    for split, (images, _) in present.items():
        chosen = [np.flatnonzero(row).tolist() for row in labels[split]] if marked else [[int(label)] for label in labels[split]]
        splits[split] = [
            Sample(f"{images}[{i}]", image, _indices([names[label] for label in found], allowed, f"{path}: {images}[{i}]"))
            for i, (image, found) in enumerate(zip(arrays[images], chosen, strict=True))
        ]
    return ImageDataset(path, allowed, marked or bool(multi_label), splits)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """All arrays of a `.npz` file, never unpickled; raises `InputError` for a damaged or foreign one."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error, AttributeError) as error:
        raise InputError(f"{path}: cannot be read as .npz arrays: {' '.join(str(error).split())[:200]}") from error


def check_array(images: NDArray[Any], name: str, *, values: bool = True) -> None:
    """Raises `InputError` unless an array holds images: N, H, W or N, H, W, C of uint8, uint16 or (`values`) floats from 0 to 1."""
    shape = " x ".join(map(str, images.shape))
    if images.ndim not in (3, 4) or images.size == 0 or (images.ndim == 4 and images.shape[3] not in (1, 3, 4)):
        raise InputError(f"{name} must be N, H, W or N, H, W, C with 1, 3 or 4 channels; got {shape}")
    if images.dtype.kind == "f":
        for index, image in enumerate(images if values else ()):
            check_unit_range(image, f"{name}[{index}]")
    elif images.dtype not in (np.uint8, np.uint16, np.bool_):
        raise InputError(f"{name} must be uint8, uint16 or floats from 0 to 1; got {images.dtype}")


def _check_labels(labels: NDArray[Any], count: int, name: str) -> NDArray[Any]:
    """N class numbers, or N, K of 0 and 1; MedMNIST's N, 1 is the former."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim not in (1, 2) or len(labels) != count:
        raise InputError(f"{name} must be N or N, K for the {count} images; got {' x '.join(map(str, labels.shape))}")
    if labels.dtype.kind not in "iub" or (labels.size and int(labels.min()) < 0):
        raise InputError(f"{name} must be whole numbers from 0 up; got {labels.dtype} from {labels.min() if labels.size else 'nothing'}")
    if labels.ndim == 2 and int(labels.max()) > 1:
        raise InputError(f"{name} must be 0 or 1 where there is a column a class; got {int(labels.max())}")
    return labels
