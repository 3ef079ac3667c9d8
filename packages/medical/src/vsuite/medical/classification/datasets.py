"""Data sets of labelled medical pictures: what the core reads, and ChestX-ray14 as its authors distribute it."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from vsuite.core.errors import InputError, unknown
from vsuite.core.images import datasets
from vsuite.core.images.datasets import ALL, ImageDataset, Sample, first
from vsuite.medical.data import pictures2d  # noqa: F401  makes the core read DICOM and NIfTI

FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""ChestX-ray14's, in the order of the published models' outputs."""

TABLE = "Data_Entry_2017*.csv"
NOTHING = "No Finding"
Findings = tuple[tuple[int, ...], str]  # of a picture: indices of classes, and the patient
LISTS = {"train_val_list.txt": "train", "train_list.txt": "train", "val_list.txt": "val", "test_list.txt": "test"}
FLAGGED = {"train_official.txt": "train", "val_official.txt": "val", "test_official.txt": "test"}
"""Lists of Medical MAE's authors: in each line a picture and 14 flags, in the order of `FINDINGS`."""


def read_dataset(source: str | Path, *, classes: Sequence[str] | None = None, multi_label: bool | None = None) -> ImageDataset:
    """The core's `read_dataset`, which here takes ChestX-ray14 too: its folder, or its table Data_Entry_2017.csv in it.

    In place of the table the folder may hold `train_official.txt`, `val_official.txt` and `test_official.txt`, in each line a
    picture and 14 flags, as Medical MAE's authors distribute them. They decide where both are there.

    Raises:
        InputError: naming the file (and line) for everything that is wrong.
    """
    path = Path(source)
    flagged = {split: path / name for name, split in FLAGGED.items() if (path / name).is_file()}
    tables = sorted(path.glob(TABLE)) if path.is_dir() else [path] if path.match(TABLE) and path.is_file() else []
    if not tables and not flagged:
        return datasets.read_dataset(path, classes=classes, multi_label=multi_label)
    if multi_label is False:
        raise InputError(f"{path}: ChestX-ray14 gives a picture any number of findings; it is read as multi-label only")
    chosen = list(classes or FINDINGS)
    if flagged:
        return _read_flagged(path, flagged, chosen)
    return _read_chestxray14(tables[0], chosen)


def holds_chestxray14(folder: Path) -> bool:
    """Whether a folder is ChestX-ray14's: holds its table, or lists with flags."""
    return folder.is_dir() and (any(folder.glob(TABLE)) or any((folder / name).is_file() for name in FLAGGED))


def _read_chestxray14(table: Path, classes: Sequence[str]) -> ImageDataset:
    """The pictures that the official lists name, in the splits that they make; a patient's pictures are one group."""
    findings = _read_findings(table, classes)
    root = table.parent
    splits = _read_lists(root) or {ALL: list(findings)}
    for names in splits.values():
        unlisted = [name for name in names if name not in findings]
        if unlisted:
            raise InputError(f"{root}: {len(unlisted)} listed pictures are not in {table.name}: {first(unlisted)}")
    return _with_files(root, classes, {split: {name: findings[name] for name in names} for split, names in splits.items()}, table.name)


def _read_flagged(root: Path, lists: Mapping[str, Path], classes: Sequence[str]) -> ImageDataset:
    """What lists with flags name, in the splits that they make."""
    unnamed = [name for name in FINDINGS if name not in classes]
    found: dict[str, dict[str, Findings]] = {}
    for split, path in lists.items():
        found[split] = {}
        for number, line in enumerate(_text(path).splitlines(), 1):
            name, *flags = line.split() or [""]
            if not name:
                continue
            if len(flags) != len(FINDINGS) or not set(flags) <= {"0", "1"}:
                got = repr(line.strip()[:80])
                raise InputError(f"{path}, line {number}: a picture and {len(FINDINGS)} flags 0 or 1 are expected; got {got}")
            labels = [label for label, flag in zip(FINDINGS, flags, strict=True) if flag == "1"]
            if wrong := next((label for label in labels if label in unnamed), None):
                raise InputError(f"{path}, line {number}: {unknown('finding', wrong, classes)}")
            file = Path(name).name
            found[split][file] = tuple(classes.index(label) for label in labels), file.partition("_")[0]
    return _with_files(root, classes, found, "its lists")


def _with_files(root: Path, classes: Sequence[str], splits: Mapping[str, Mapping[str, Findings]], source: str) -> ImageDataset:
    """The data set of named pictures, which lie in folders images*, however deep."""
    files = {path.name: path for folder in sorted(root.glob("images*")) for path in folder.rglob("*.png")}
    missing = [name for found in splits.values() for name in found if name not in files]
    if missing:
        raise InputError(f"{root}: {len(missing)} pictures of {source} are missing in its folders images*: {first(missing)}")
    samples = {split: [Sample(name, files[name], *facts) for name, facts in found.items()] for split, found in splits.items()}
    return ImageDataset(root, list(classes), True, samples)


def _read_findings(table: Path, classes: Sequence[str]) -> dict[str, Findings]:
    """Picture -> indices of its findings, and its patient."""
    found = {}
    try:
        with table.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            needed = {"Image Index", "Finding Labels"}
            if not needed <= set(reader.fieldnames or ()):
                raise InputError(
                    f"{table}: needs the columns {' and '.join(sorted(needed))}; it has {first(list(reader.fieldnames or ()), 8)}"
                )
            for row in reader:
                name, labels = (row["Image Index"] or "").strip(), [label.strip() for label in (row["Finding Labels"] or "").split("|")]
                wrong = next((label for label in labels if label not in classes and label != NOTHING), None)
                if wrong is not None:
                    raise InputError(f"{table}, line {reader.line_num}: {unknown('finding', wrong, [*classes, NOTHING])}")
                indices = tuple(classes.index(label) for label in dict.fromkeys(labels) if label != NOTHING)
                found[name] = indices, str(row.get("Patient ID") or name.partition("_")[0])
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{table}: is no CSV file (UTF-8): {error}") from error
    if not found:
        raise InputError(f"{table}: holds no pictures")
    return found


def _read_lists(root: Path) -> dict[str, list[str]]:
    """Split -> pictures, from the lists that lie beside the table; empty without any."""
    found: dict[str, list[str]] = {}
    for name, split in LISTS.items():
        path = root / name
        if path.is_file() and not (name == "train_val_list.txt" and (root / "train_list.txt").is_file()):
            found[split] = [line.split()[0] for line in _text(path).splitlines() if line.strip()]
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: is no text file (UTF-8): {error}") from error
