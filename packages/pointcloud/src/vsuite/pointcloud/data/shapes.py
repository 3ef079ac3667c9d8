"""Data sets of shapes: ModelNet40, ScanObjectNN, ShapeNetPart, and plain folders of classes."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.core.files import atomic_path
from vsuite.pointcloud.data.clouds import PointCloud, is_cloud, read_cloud
from vsuite.pointcloud.data.frames import Problems

SCANOBJECTNN_CLASSES = (
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink", "sofa", "toilet",
)  # fmt: skip
SCANOBJECTNN_VARIANTS = {
    "pb_t50_rs": "objectdataset_augmentedrot_scale75",
    "pb_t50_r": "objectdataset_augmentedrot",
    "pb_t25_r": "objectdataset_augmented25rot",
    "pb_t25": "objectdataset_augmented25_norot",
    "obj": "objectdataset",
}
"""Names of ScanObjectNN's perturbations, from the hardest to none, and of their files."""

SHAPENET_CATEGORIES = {
    "02691156": "Airplane", "02773838": "Bag", "02954340": "Cap", "02958343": "Car", "03001627": "Chair", "03261776": "Earphone",
    "03467517": "Guitar", "03624134": "Knife", "03636649": "Lamp", "03642806": "Laptop", "03790512": "Motorbike", "03797390": "Mug",
    "03948459": "Pistol", "04099429": "Rocket", "04225987": "Skateboard", "04379243": "Table",
}  # fmt: skip
SHAPENET_PARTS = {
    "Airplane": range(4), "Bag": range(4, 6), "Cap": range(6, 8), "Car": range(8, 12), "Chair": range(12, 16), "Earphone": range(16, 19),
    "Guitar": range(19, 22), "Knife": range(22, 24), "Lamp": range(24, 28), "Laptop": range(28, 30), "Motorbike": range(30, 36),
    "Mug": range(36, 38), "Pistol": range(38, 41), "Rocket": range(41, 44), "Skateboard": range(44, 47), "Table": range(47, 50),
}  # fmt: skip
_SHAPENET_COLUMNS = ("x", "y", "z", "nx", "ny", "nz", "label")
_MODELNET_COLUMNS = _SHAPENET_COLUMNS[:6]
_SPLITS = ("train", "val", "test")


@dataclass
class ShapeData:
    """A data set of shapes, which are read one at a time.

    Attributes:
        class_names: what the labels stand for. labels: (n,) int64.
        names: of the shapes. layout: "modelnet40_h5", "modelnet40_txt", "scanobjectnn", "shapenetpart" or "folders".
        load: reads shape i. parts: class -> part labels its points may have, for part segmentation.
        up: axis that points up.
    """

    class_names: list[str]
    labels: np.ndarray
    names: list[str]
    layout: str
    load: Callable[[int], PointCloud]
    parts: dict[str, list[int]] = field(default_factory=dict)
    up: Literal["y", "z"] = "y"

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> PointCloud:
        return self.load(index)


def read_shapes(root: str | Path, split: str | None = None, *, variant: str | None = None, cache: str | Path | None = None) -> ShapeData:
    """Reads a data set of shapes, of which it finds out the layout.

    Args:
        root: a folder. split: "train", "val" or "test" as the data set has them; without it, everything.
        variant: of ScanObjectNN, one of `SCANOBJECTNN_VARIANTS`; by default the hardest that is there.
        cache: folder in which shapes read from text are kept as .npy, since text is slow.

    Raises:
        InputError: for a folder in no known layout; and with a line for everything that is wrong in one that is.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: {'is a file; a data set of shapes is a folder' if root.exists() else 'no such folder'}")
    if split is not None and split not in _SPLITS:
        raise unknown("split", split, _SPLITS)
    if any(root.glob("ply_data_*.h5")):
        return _read_modelnet_h5(root, split)
    if (folder := _scanobjectnn_folder(root)) is not None:
        return _read_scanobjectnn(folder, split, variant)
    kept = None if cache is None else Path(cache)
    if (root / "train_test_split").is_dir():
        return _read_shapenet(root, split, kept)
    if any(root.glob("modelnet*_shape_names.txt")):
        return _read_modelnet_txt(root, split, kept)
    return _read_folders(root, split)


def shape_splits(root: str | Path) -> list[str]:
    """The splits that a data set of shapes has: those of train, val and test that `read_shapes` finds shapes for."""
    found = []
    for split in _SPLITS:
        with contextlib.suppress(InputError):
            if len(read_shapes(root, split)):
                found.append(split)
    return found


# --- HDF5 ---


def _read_modelnet_h5(root: Path, split: str | None) -> ShapeData:
    files = sorted(root.glob(f"ply_data_{split or ''}*.h5"))
    if not files:
        raise InputError(f"{root}: holds no ply_data_{split}*.h5")
    names_file = root / "shape_names.txt"
    class_names = names_file.read_text("utf-8-sig").split() if names_file.is_file() else [f"class_{i}" for i in range(40)]
    return _from_h5(files, class_names, "modelnet40_h5")


def _scanobjectnn_folder(root: Path) -> Path | None:
    """Where ScanObjectNN's files are: the folder itself, or those it is unpacked into; with background first."""
    folders = [root / part for part in ("", "main_split", "h5_files/main_split", "main_split_nobg", "h5_files/main_split_nobg")]
    return next((folder for folder in folders if any(folder.glob("*_objectdataset*.h5"))), None)


def _read_scanobjectnn(folder: Path, split: str | None, variant: str | None) -> ShapeData:
    if variant is not None and variant not in SCANOBJECTNN_VARIANTS:
        raise unknown("variant of ScanObjectNN", variant, SCANOBJECTNN_VARIANTS)
    present = [name for name, stem in SCANOBJECTNN_VARIANTS.items() if any(folder.glob(f"*_{stem}.h5"))]
    stem = SCANOBJECTNN_VARIANTS[variant or present[0]]
    halves = {"train": ["training"], "test": ["test"], None: ["training", "test"]}
    if split not in halves:
        raise InputError(f"{folder}: ScanObjectNN has no split {split!r}; there is train, test")
    files = [folder / f"{half}_{stem}.h5" for half in halves[split]]
    return _from_h5(files, list(SCANOBJECTNN_CLASSES), "scanobjectnn")


def _from_h5(files: Sequence[Path], class_names: list[str], layout: str) -> ShapeData:
    """Shapes of files with `data` (n, P, 3), `label` (n,) or (n, 1), and perhaps `normal` and `mask`."""
    problems = Problems()
    parts: list[dict[str, np.ndarray]] = []
    for path in files:
        try:
            parts.append(_h5_arrays(path, len(class_names)))
        except InputError as error:
            problems.add(str(error))
    problems.raise_if_any(files[0].parent)
    where = [(part, row) for part, arrays in enumerate(parts) for row in range(len(arrays["label"]))]

    def load(index: int) -> PointCloud:
        part, row = where[index]
        arrays = parts[part]
        columns: dict[str, np.ndarray] = {}
        if "normal" in arrays:
            columns |= {name: arrays["normal"][row, :, i] for i, name in enumerate(("nx", "ny", "nz"))}
        if "mask" in arrays:
            columns["foreground"] = arrays["mask"][row] >= 0  # the background is marked by -1
        return PointCloud(np.array(arrays["data"][row], np.float32), columns, files[part])

    names = [f"{files[part].stem}/{row}" for part, row in where]
    return ShapeData(class_names, np.concatenate([arrays["label"] for arrays in parts]), names, layout, load)


def _h5_arrays(path: Path, num_classes: int) -> dict[str, np.ndarray]:
    import h5py

    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with h5py.File(path, "r") as file:
            arrays = {name: file[name][()] for name in ("data", "label", "normal", "mask") if name in file}
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not a readable HDF5 file: {str(error).splitlines()[0]}") from error
    if "data" not in arrays or "label" not in arrays:
        raise InputError(f"{path}: has no 'data' and 'label'; it has: {', '.join(arrays) or 'neither'}")
    data, labels = arrays["data"], arrays["label"].reshape(-1).astype(np.int64)
    if data.ndim != 3 or data.shape[2] != 3 or not len(data):
        raise InputError(f"{path}: 'data' has the shape {data.shape}; shapes are (number, points, 3)")
    if len(labels) != len(data):
        raise InputError(f"{path}: {len(data)} shapes, but {len(labels)} labels")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(f"{path}: labels from {labels.min()} to {labels.max()}; there are {num_classes} classes, from 0")
    if bad := int(np.sum(~np.isfinite(data).all((1, 2)))):
        raise InputError(f"{path}: {bad} of {len(data)} shapes have NaN or infinite coordinates")
    return arrays | {"label": labels}


# --- text ---


def _read_modelnet_txt(root: Path, split: str | None, cache: Path | None) -> ShapeData:
    listing = sorted(root.glob("modelnet*_shape_names.txt"))[-1]
    prefix = listing.name.removesuffix("_shape_names.txt")
    class_names = listing.read_text("utf-8-sig").split()
    if split == "val":
        raise InputError(f"{root}: ModelNet has no split 'val'; there is train, test")
    names: list[str] = []
    for part in [split] if split else ["train", "test"]:
        path = root / f"{prefix}_{part}.txt"
        if not path.is_file():
            raise InputError(f"{path}: no such file, so the split is unknown")
        names += path.read_text("utf-8-sig").split()
    categories = [name.rsplit("_", 1)[0] for name in names]
    paths = [root / category / f"{name}.txt" for category, name in zip(categories, names, strict=True)]
    return _from_text(root, paths, names, categories, class_names, "modelnet40_txt", _MODELNET_COLUMNS, cache)


def _read_shapenet(root: Path, split: str | None, cache: Path | None) -> ShapeData:
    names: list[str] = []
    for part in [split] if split else _SPLITS:
        path = root / "train_test_split" / f"shuffled_{part}_file_list.json"
        try:
            names += ["/".join(entry.split("/")[-2:]) for entry in json.loads(path.read_text("utf-8-sig"))]
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise InputError(f"{path}: not a readable list of shapes: {error}") from error
    synsets = [name.split("/")[0] for name in names]
    if unknown_synsets := sorted(set(synsets) - set(SHAPENET_CATEGORIES)):
        raise InputError(f"{root}: the splits list the categories {', '.join(unknown_synsets[:5])}, which ShapeNetPart does not have")
    categories = [SHAPENET_CATEGORIES[synset] for synset in synsets]
    paths = [root / f"{name}.txt" for name in names]
    class_names = list(SHAPENET_PARTS)
    data = _from_text(root, paths, names, categories, class_names, "shapenetpart", _SHAPENET_COLUMNS, cache)
    data.parts = {name: list(parts) for name, parts in SHAPENET_PARTS.items()}
    return data


def _from_text(
    root: Path,
    paths: list[Path],
    names: list[str],
    categories: list[str],
    class_names: list[str],
    layout: str,
    columns: tuple[str, ...],
    cache: Path | None,
) -> ShapeData:
    problems = Problems()
    for path, category in zip(paths, categories, strict=True):
        if category not in class_names:
            problems.add(f"{path}: its class {category!r} is not in the list of classes")
        elif not path.is_file():
            problems.add(f"{path}: no such file, but a split lists it")
    problems.raise_if_any(root)

    def load(index: int) -> PointCloud:
        cloud = _read_text(paths[index], names[index], columns, cache)
        if "label" in cloud.columns:
            allowed = SHAPENET_PARTS[categories[index]]
            parts = cloud.columns["label"]
            if len(parts) and not allowed.start <= parts.min() <= parts.max() < allowed.stop:
                limits = f"{allowed.start} to {allowed.stop - 1}"
                raise InputError(f"{paths[index]}: part labels from {parts.min():g} to {parts.max():g}; {categories[index]} has {limits}")
            cloud.columns["label"] = parts.astype(np.int64)
        return cloud

    labels = np.array([class_names.index(category) for category in categories], np.int64)
    return ShapeData(class_names, labels, names, layout, load)


def _read_text(path: Path, name: str, columns: tuple[str, ...], cache: Path | None) -> PointCloud:
    if cache is None:
        return read_cloud(path, columns=columns)
    kept = cache / f"{name.replace('/', '_')}.npy"
    if not kept.is_file() or kept.stat().st_mtime < path.stat().st_mtime:
        with atomic_path(kept) as temporary:
            np.save(temporary, read_cloud(path, columns=columns).array(columns[3:]))
    return read_cloud(kept, columns=columns)


# --- folders of classes ---


def _read_folders(root: Path, split: str | None) -> ShapeData:
    """ROOT/CLASS/*, ROOT/SPLIT/CLASS/* or ROOT/CLASS/SPLIT/* (as ModelNet's meshes)."""
    by_split = [root / name for name in _SPLITS if (root / name).is_dir()]
    if by_split and split is not None and root / split not in by_split:
        raise InputError(f"{root}: has no split {split!r}; there is {', '.join(path.name for path in by_split)}")
    tops = [root / split] if by_split and split else by_split or [root]
    problems = Problems()
    found: list[tuple[str, Path]] = []
    for folder in sorted({path.name: path for top in tops for path in top.iterdir() if _is_class(path)}):
        for top in tops:
            found += [(folder, path) for path in _clouds_of(top / folder, None if by_split else split)]
        if not any(name == folder for name, _ in found):
            problems.add(f"{root / folder}: the class has no point cloud files" + (f" of the split {split!r}" if split else ""))
    if not found and not problems.lines:
        layouts = "ply_data_train0.h5 (ModelNet40), training_objectdataset.h5 (ScanObjectNN) or train_test_split/ (ShapeNetPart)"
        problems.add(f"{root}: not a known data set of shapes; it would hold {layouts}, or a folder of files for each class")
    problems.raise_if_any(root)
    class_names = sorted({name for name, _ in found})
    labels = np.array([class_names.index(name) for name, _ in found], np.int64)
    paths = [path for _, path in found]
    return ShapeData(
        class_names, labels, [str(path.relative_to(root)) for path in paths], "folders", lambda i: read_cloud(paths[i]), up="z"
    )


def _is_class(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".")


def _clouds_of(folder: Path, split: str | None) -> list[Path]:
    if not folder.is_dir():
        return []
    inner = [folder / name for name in _SPLITS if (folder / name).is_dir()]
    folders = [path for path in inner if split in (None, path.name)]
    if not inner and split is None:
        folders = [folder]
    return sorted(path for place in folders for path in place.iterdir() if is_cloud(path) and not path.name.startswith("."))
