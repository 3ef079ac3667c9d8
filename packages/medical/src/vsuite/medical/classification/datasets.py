"""Data sets of labelled medical pictures: what the core reads, and ChestX-ray14 as its authors distribute it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
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
LISTS = {"train_val_list.txt": "train", "train_list.txt": "train", "val_list.txt": "val", "test_list.txt": "test"}


def read_dataset(source: str | Path, *, classes: Sequence[str] | None = None, multi_label: bool | None = None) -> ImageDataset:
    """The core's `read_dataset`, which here takes ChestX-ray14 too: its folder, or its table Data_Entry_2017.csv in it.

    Raises:
        InputError: naming the file (and line) for everything that is wrong.
    """
    path = Path(source)
    tables = sorted(path.glob(TABLE)) if path.is_dir() else [path] if path.match(TABLE) and path.is_file() else []
    if not tables:
        return datasets.read_dataset(path, classes=classes, multi_label=multi_label)
    if multi_label is False:
        raise InputError(f"{path}: ChestX-ray14 gives a picture any number of findings; it is read as multi-label only")
    return _read_chestxray14(tables[0], list(classes or FINDINGS))


def _read_chestxray14(table: Path, classes: Sequence[str]) -> ImageDataset:
    """The pictures that the official lists name, in the splits that they make; a patient's pictures are one group."""
    findings = _read_findings(table, classes)
    root = table.parent
    splits = _read_lists(root) or {ALL: list(findings)}
    files = {path.name: path for folder in sorted(root.glob("images*")) for path in folder.rglob("*.png")}
    samples: dict[str, list[Sample]] = {}
    missing = []
    for split, names in splits.items():
        unlisted = [name for name in names if name not in findings]
        if unlisted:
            raise InputError(f"{root}: {len(unlisted)} listed pictures are not in {table.name}: {first(unlisted)}")
        missing += [name for name in names if name not in files]
        samples[split] = [Sample(name, files[name], *findings[name]) for name in names if name in files]
    if missing:
        raise InputError(f"{root}: {len(missing)} pictures of {table.name} are missing in its folders images*: {first(missing)}")
    return ImageDataset(root, list(classes), True, samples)


def _read_findings(table: Path, classes: Sequence[str]) -> dict[str, tuple[tuple[int, ...], str]]:
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
                name, labels = row["Image Index"].strip(), [label.strip() for label in (row["Finding Labels"] or "").split("|")]
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
            found[split] = [line.split()[0] for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return found
