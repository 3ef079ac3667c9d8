"""Arrays: raw float32 (.bin), numpy's .npy and .npz, and .h5. None needs open3d."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.pointcloud.data.columns import GROUPS, LAYOUTS, Table, expand_groups, name_columns

_SCANOBJECTNN = ("x", "y", "z", "nx", "ny", "nz", "red", "green", "blue", "instance", "label")
_CLASS_NAMES = "class_names"


def read_bin(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Float32 rows without a header.

    Without `columns`, a name ending in .pcd.bin means nuScenes' five, any other KITTI's four, unless the first value is the
    number of points as in ScanObjectNN's raw files. A file that these do not fit is refused: which other number of columns it
    has cannot be told safely.
    """
    size = path.stat().st_size
    if size % 4:
        raise InputError(f"{path}: {size} bytes are no whole number of float32 values")
    values = np.fromfile(path, "<f4")
    if columns is not None:
        return name_columns(_rows(path, values, columns), path, columns)
    if len(values) == 1 + len(_SCANOBJECTNN) * values[0]:
        return name_columns(values[1:].reshape(-1, len(_SCANOBJECTNN)), path, _SCANOBJECTNN)
    layout = "nuscenes" if path.name.lower().endswith(".pcd.bin") else "kitti"
    return name_columns(_rows(path, values, LAYOUTS[layout], check=True), path, LAYOUTS[layout])


def _rows(path: Path, values: np.ndarray, columns: Sequence[str], *, check: bool = False) -> np.ndarray:
    width = len(columns)
    others = [f"{len(names)} (layout {name})" for name, names in LAYOUTS.items() if len(names) != width and len(values) % len(names) == 0]
    hint = f"; rows of {' or '.join(others)} would fit" if others else ""
    advice = f"{hint}; say its columns or layout"
    if len(values) % width:
        raise InputError(f"{path}: {len(values)} float32 values do not divide into rows of {width} ({' '.join(columns)}){advice}")
    rows = values.reshape(-1, width)
    if check and others and np.any(rows[:, 3] < 0):
        raise InputError(f"{path}: as rows of {width} ({' '.join(columns)}) its intensity is negative, so it has other columns{advice}")
    return rows


def read_npy(path: Path, columns: Sequence[str] | None = None) -> Table:
    """An array (N, C), or a record array with named fields."""
    with _readable(path, ".npy"):
        values = np.load(path, allow_pickle=False)
    if values.dtype.names:
        return {name: values[name] for name in values.dtype.names}
    return name_columns(_numeric(values, path), path, columns)


def read_npz(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Arrays by name: points (N, 3 or more), and further columns (N,); or x, y and z."""
    arrays = load_npz(path)
    arrays.pop(_CLASS_NAMES, None)
    return _table(arrays, path, columns)


def load_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz; raises `InputError` for another or a damaged file."""
    with _readable(path, ".npz"), np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def class_names(path: Path) -> tuple[str, ...]:
    """The names of label values in an .npz; none in other files."""
    if path.suffix.lower() != ".npz":
        return ()
    with _readable(path, ".npz"), np.load(path, allow_pickle=False) as file:
        return tuple(map(str, file[_CLASS_NAMES].tolist())) if _CLASS_NAMES in file.files else ()


@contextlib.contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    """Damaged archives raise errors of zip, zlib, struct, memory and more: each becomes one `InputError`, without numpy's advice."""
    try:
        yield
    except Exception as error:
        raise InputError(f"{path}: not a readable {kind} file: {_line(error).split(' If you trust ')[0]}") from error


def read_h5(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Data sets by name at the file's root, as in .npz."""
    import h5py

    with _readable(path, "HDF5"), h5py.File(path, "r") as file:
        arrays = {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset) and item.ndim}
    return _table(arrays, path, columns)


def _table(arrays: dict[str, np.ndarray], path: Path, columns: Sequence[str] | None) -> Table:
    for name, values in arrays.items():
        _numeric(values, path)
        if values.ndim == 3:
            raise InputError(
                f"{path}: {name!r} holds {len(values)} clouds of {values.shape[1]} points; it is a data set of shapes, not one cloud"
            )
    if not any(name.lower() in GROUPS and GROUPS[name.lower()][0] == "x" for name in arrays):
        if len(arrays) == 1:
            arrays = {"points": next(iter(arrays.values()))}
        elif not {"x", "y", "z"} <= {name.lower() for name in arrays}:
            raise InputError(
                f"{path}: has no array 'points' (or 'xyz', 'coord', 'positions'); its arrays are: {', '.join(arrays) or 'none'}"
            )
    return expand_groups(arrays, path, columns)


def _numeric(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {values.dtype} values; points are numbers")
    return values


def write_array(path: Path, array: np.ndarray) -> None:
    """.bin: the float32 values alone; .npy: the array."""
    with atomic_path(path) as temporary:
        if path.suffix.lower() == ".bin":
            array.astype("<f4").tofile(temporary)
        else:
            np.save(temporary, array)


def write_npz(path: Path, points: np.ndarray, columns: Table, class_names: Sequence[str] = ()) -> None:
    """`points` (N, 3) and each column by its name."""
    arrays: dict[str, Any] = {"points": points} | columns | ({_CLASS_NAMES: np.array(class_names)} if class_names else {})
    with atomic_path(path) as temporary:
        np.savez_compressed(temporary, **arrays)


def _line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
