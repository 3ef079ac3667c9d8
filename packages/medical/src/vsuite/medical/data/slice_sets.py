"""Synapse and ACDC as TransUNet and its successors pass them around: slices to train on, volumes to test on, lists beside them.

Synapse: `train_npz/*.npz` and `test_vol_h5/*.npy.h5`, both with the arrays image and label, values within 0..1.
ACDC: `ACDC_training_slices/*.h5` with `ACDC_training_volumes/*.h5` (or `data/slices` with `data`), or the challenge's own folders
`patient001/` with `Info.cfg`, whose frames of end diastole (ED) and end systole (ES) are the cases. What the lists
(`train.txt`, `test_vol.txt`; `train_slices.list`, `val.list`) name is trained and validated on; without them, everything.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from vsuite.core.errors import InputError
from vsuite.medical.data.datasets import Case, DatasetDescription
from vsuite.medical.data.files import is_image, stem_of
from vsuite.medical.data.labels import first_items

ORGANS = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
CHAMBERS = ("right ventricle", "myocardium", "left ventricle")
SYNAPSE_LISTS = ("train.txt", "test_vol.txt")
ACDC_FOLDERS = (("ACDC_training_slices", "ACDC_training_volumes"), ("data/slices", "data"), ("slices", "."))
ACDC_LISTS = ("train_slices.list", "val.list")


def read_slice_set(root: Path) -> DatasetDescription | None:
    """What a folder holds if it is one of these data sets; None for any other.

    Raises:
        InputError: for lists that name files which are not there, and patients whose Info.cfg or frames are missing.
    """
    if (root / "train_npz").is_dir():
        return _synapse(root)
    for slices, volumes in ACDC_FOLDERS:
        if any((root / slices).glob("patient*_slice_*.h5")):
            return _slices_and_volumes(root, root / slices, root / volumes, ACDC_LISTS, "acdc", "MRI", CHAMBERS)
    infos = sorted({*root.glob("patient*/Info.cfg"), *root.glob("*/patient*/Info.cfg")})
    patients = sorted({*root.glob("patient[0-9]*/"), *root.glob("training/patient[0-9]*/")})
    return _patients(root, infos, patients) if infos else None


def _synapse(root: Path) -> DatasetDescription:
    return _slices_and_volumes(root, root / "train_npz", root / "test_vol_h5", SYNAPSE_LISTS, "synapse", "CT", ORGANS)


def _slices_and_volumes(
    root: Path,
    slices: Path,
    volumes: Path,
    lists: tuple[str, str],
    layout: Literal["synapse", "acdc"],
    channel: str,
    names: Sequence[str],
) -> DatasetDescription:
    train, val = (_listed(root, name, _files(folder)) for name, folder in zip(lists, (slices, volumes), strict=True))
    split = ([stem_of(path) for path in train], [stem_of(path) for path in val])
    cases = [Case(stem_of(path), (path,), path) for path in (*train, *val)]
    labels: dict[str, int | list[int]] = {"background": 0, **{name: i for i, name in enumerate(names, 1)}}
    return DatasetDescription(root.resolve().name, root, layout, [channel], labels, cases, own_split=split)


def _files(folder: Path) -> dict[str, Path]:
    return {stem_of(path): path for path in sorted(folder.iterdir()) if path.is_file() and is_image(path)} if folder.is_dir() else {}


def _listed(root: Path, name: str, files: dict[str, Path]) -> list[Path]:
    """The files that a list (anywhere in the folder, `lists/lists_Synapse/train.txt` say) names; all of them without a list."""
    found = sorted(path for pattern in (name, f"*/{name}", f"*/*/{name}") for path in root.glob(pattern))
    if not found:
        return list(files.values())
    wanted = [stem_of(Path(line.strip())) for line in found[0].read_text(encoding="utf-8").splitlines() if line.strip()]
    if missing := [one for one in wanted if one not in files]:
        raise InputError(f"{found[0]}: names files that are not there: {first_items(missing)}")
    return [files[one] for one in dict.fromkeys(wanted)]


def _patients(root: Path, infos: Iterable[Path], folders: Iterable[Path]) -> DatasetDescription:
    """The challenge's folders: two frames a patient, those in a folder `testing` without a label here."""
    without = sorted({folder.name for folder in folders} - {info.parent.name for info in infos})
    if without:
        raise InputError(f"{root}: patients without Info.cfg, which names the frames: {first_items(without)}")
    training: list[Case] = []
    test: list[Case] = []
    for info in infos:
        for phase in ("ED", "ES"):
            case = _frame(info, phase)
            (test if case.label is None or info.parent.parent.name == "testing" else training).append(case)
    labels: dict[str, int | list[int]] = {"background": 0, **{name: i for i, name in enumerate(CHAMBERS, 1)}}
    return DatasetDescription(root.resolve().name, root, "acdc", ["MRI"], labels, training, test)


def _frame(info: Path, phase: str) -> Case:
    number = re.search(rf"^\s*{phase}\s*:\s*(\d+)\s*$", info.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    if number is None:
        raise InputError(f"{info}: does not say which frame is {phase}; a line such as '{phase}: 1' is expected")
    name = f"{info.parent.name}_frame{int(number[1]):02d}"
    image, label = (
        next((path for ending in (".nii.gz", ".nii") if (path := info.parent / f"{name}{kind}{ending}").is_file()), None)
        for kind in ("", "_gt")
    )
    if image is None:
        raise InputError(f"{info}: names the frame {number[1]} as {phase}, but {name}.nii.gz is not there")
    return Case(name, (image,), label)
