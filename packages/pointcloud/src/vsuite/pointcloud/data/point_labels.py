"""Labels of single points in files of their own, beside the points."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.pointcloud.data.clouds import PointCloud, check_is_file, read_cloud

_SUFFIXES = (".label", ".npy", ".txt", ".ply", ".npz", ".bin")


def read_point_labels(path: str | Path, count: int) -> dict[str, np.ndarray]:
    """The class of each point, and its instance where the file has one.

    Args:
        path: .label (SemanticKITTI: uint32, class in the low 16 bits, instance in the high), .bin (nuScenes lidarseg: uint8), .npy and
            .txt (one number a point), or a cloud (.ply, .npz) with a column `label`.
        count: of the points that the labels belong to.

    Returns:
        label (count,) int64, and instance, if any.

    Raises:
        InputError: where the file has another number of labels than there are points.
    """
    path = Path(path)
    check_is_file(path)
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise unknown("ending of a label file", suffix or path.name, _SUFFIXES)
    labels = _read(path, suffix)
    found = len(labels["label"])
    if found != count:
        raise InputError(f"{path}: has {found} labels, but the cloud has {count} points; it is the label file of another cloud")
    return labels


def add_labels(cloud: PointCloud, path: str | Path) -> PointCloud:
    """The cloud with the labels of a file as columns."""
    cloud.columns.update(read_point_labels(path, len(cloud)))
    return cloud


def _read(path: Path, suffix: str) -> dict[str, np.ndarray]:
    if suffix == ".label":
        if path.stat().st_size % 4:
            raise InputError(f"{path}: {path.stat().st_size} bytes are no whole number of uint32 labels")
        values = np.fromfile(path, "<u4")
        return {"label": (values & 0xFFFF).astype(np.int64), "instance": (values >> 16).astype(np.int64)}
    if suffix == ".bin":
        return {"label": np.fromfile(path, np.uint8).astype(np.int64)}
    if suffix in (".ply", ".npz"):
        cloud = read_cloud(path, invalid="keep")
        cloud.array(["label"])
        return {name: _whole(cloud.columns[name], path) for name in ("label", "instance") if name in cloud.columns}
    try:
        values = np.load(path, allow_pickle=False) if suffix == ".npy" else np.loadtxt(path, ndmin=1)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path}: labels cannot be read: {str(error).splitlines()[0]}") from error
    return {"label": _whole(values, path)}


def _whole(values: np.ndarray, path: Path) -> np.ndarray:
    if values.ndim == 2 and values.shape[1] == 1:
        values = values[:, 0]
    if values.ndim != 1 or values.dtype.kind not in "fiub" or not np.all(values == np.round(values)):
        raise InputError(f"{path}: labels are one whole number a point")
    return values.astype(np.int64)
