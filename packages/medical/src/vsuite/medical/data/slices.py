"""Volumes cut into 16-bit pictures along Z, with a table of the structures that each slice shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import write_csv
from vsuite.medical.data.datasets import Case, DatasetDescription, check_case, read_dataset
from vsuite.medical.data.dicom import Window, is_series, read_series
from vsuite.medical.data.files import stem_of
from vsuite.medical.data.nifti import Volume, is_nifti, read_image
from vsuite.medical.data.pictures2d import cut, write_png
from vsuite.medical.data.splits import split_cases

LABELS = "labels.csv"


def cut_dataset(
    data: str | Path,
    out: str | Path,
    *,
    window: Window | None = None,
    fraction: float = 0.2,
    labelled: float = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> Path:
    """Cuts a segmentation data set into a multi-label classification data set: which structures does a slice show?

    Writes `images/CASE_z012.png` and `labels.csv` with the columns path, split, group (the volume) and one of 0 and 1 a structure.
    Volumes, not slices, are divided between train and val, as `split_cases` does.

    Args:
        data: Decathlon or nnU-Net folder, or one of images/ and labels/.
        out: a new or empty folder.
        window: see `vsuite.medical.data.pictures2d.cut`; the first channel is taken.
        fraction: share of the volumes that validates.
        labelled: share of the training volumes that enters `labels_few.csv`, a second table beside the whole; 1 writes none.
        seed: of the draws.
        progress: show a progress bar.

    Returns:
        The table.

    Raises:
        InputError: for a data set or case that cannot be used, a folder that is not empty, and shares out of range.
    """
    from rich.progress import track

    if not 0 < labelled <= 1:
        raise InputError(f"the labelled share lies in (0, 1]; got {labelled}")
    description, out = read_dataset(data), _new_folder(out)
    split = split_cases(description, fraction=fraction, seed=seed)
    cases, held = description.training, set(split.val)
    training = [cases[i].name for i in np.random.default_rng(seed).permutation(len(cases)) if cases[i].name not in held]
    few = {*held, *training[: max(1, round(labelled * len(training)))]}
    structures = _structures(description)
    rows: list[list[str]] = []
    kept: list[list[str]] = []
    for case in track(cases, "cutting volumes", disable=not progress):
        part = "val" if case.name in held else "train"
        found = [[path, part, *row] for path, *row in _cut_case(case, description, structures, out, window)]
        rows += found
        kept += found if case.name in few else []
    header = ["path", "split", "group", *structures]
    write_csv(out / LABELS, [header, *rows])
    if labelled < 1:
        write_csv(out / "labels_few.csv", [header, *kept])
    return out / LABELS


def cut_folder(folder: str | Path, out: str | Path, *, window: Window | None = None, progress: bool = False) -> list[Path]:
    """Cuts all NIfTI volumes of a folder, or all DICOM series in its subfolders, into pictures `out/NAME_z012.png`.

    Slices of one value are left out.

    Args:
        out: a new or empty folder. window: see `vsuite.medical.data.pictures2d.cut`. progress: show a progress bar.

    Raises:
        InputError: for a folder that holds neither or is not empty, and for files that cannot be read.
    """
    out, written = _new_folder(out), []
    for name, volume in _volumes(Path(folder), progress=progress):
        for z, picture in enumerate(cut(volume, window)):
            if picture.min() == picture.max():  # nothing to learn from
                continue
            path = out / f"{name}_z{z:03d}.png"
            write_png(picture, path)
            written.append(path)
    return written


def holds_volumes(folder: Path) -> bool:
    """Whether a folder holds NIfTI files or, in subfolders, DICOM series of several slices."""
    return folder.is_dir() and (any(is_nifti(path) for path in folder.iterdir()) or bool(_series_folders(folder)))


def _volumes(folder: Path, *, progress: bool) -> Iterator[tuple[str, Volume]]:
    from rich.progress import track

    files = sorted(path for path in folder.iterdir() if is_nifti(path)) if folder.is_dir() else []
    series = _series_folders(folder) if folder.is_dir() and not files else []
    if not files and not series:
        raise InputError(f"{folder}: holds no NIfTI files (.nii, .nii.gz) and no folders of DICOM series")
    for path in track(files or series, "cutting volumes", disable=not progress):
        yield (stem_of(path), read_image(path)) if files else (path.name, read_series(path))


def _series_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_series(path))


def _structures(description: DatasetDescription) -> dict[str, Sequence[int]]:
    """Name -> ids, without background and what is ignored."""
    found: dict[str, Sequence[int]] = {}
    for name, ids in description.labels.items():
        values = [ids] if isinstance(ids, int) else list(ids)
        if values != [0] and name not in ("background", "ignore"):
            found[name] = values
    return found


def _cut_case(
    case: Case, description: DatasetDescription, structures: dict[str, Sequence[int]], out: Path, window: Window | None
) -> Iterator[list[str]]:
    """Writes the pictures of a case; gives path, group and flags of each."""
    volume, label = check_case(case, description)
    assert label is not None
    for z, picture in enumerate(cut(volume, window)):
        name = f"images/{case.name}_z{z:03d}.png"
        write_png(picture, out / name)
        yield [name, case.name, *(str(int(np.isin(label.array[0, :, :, z], ids).any())) for ids in structures.values())]


def _new_folder(out: str | Path) -> Path:
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not empty; choose another folder")
    return out
