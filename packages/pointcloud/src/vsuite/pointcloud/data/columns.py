"""Names of the columns of a point cloud: what files call them, and what they hold where files do not say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError, unknown

Table = dict[str, np.ndarray]
"""Columns of one file by name, each (N,); x, y and z among them."""

LAYOUTS: dict[str, tuple[str, ...]] = {
    "kitti": ("x", "y", "z", "intensity"),
    "nuscenes": ("x", "y", "z", "intensity", "ring"),
    "waymo": ("x", "y", "z", "intensity", "elongation", "time"),
}
"""Columns of the files without names that lidar data sets keep."""

_OTHER_NAMES = {
    "intensity": ("i", "intensities", "reflectance", "reflectivity", "remission", "remissions"),
    "ring": ("channel", "laser_id", "beam", "line"),
    "time": ("t", "timestamp", "time_stamp", "time_offset", "timestamp_offset", "gps_time"),
    "label": ("labels", "class", "classification", "semantic", "segment", "sem_label", "semantic_label", "part"),
    "instance": ("instances", "instance_id", "object_id"),
    "red": ("r", "diffuse_red"),
    "green": ("g", "diffuse_green"),
    "blue": ("b", "diffuse_blue"),
    "nx": ("normal_x", "normals_x"),
    "ny": ("normal_y", "normals_y"),
    "nz": ("normal_z", "normals_z"),
}
_CANONICAL = {other: name for name, others in _OTHER_NAMES.items() for other in others}
_TRIPLES = {
    "xyz": ("x", "y", "z"),
    "rgb": ("red", "green", "blue"),
    "normals": ("nx", "ny", "nz"),
}
GROUPS = {
    **dict.fromkeys(("points", "positions", "position", "xyz", "coord", "coords", "coordinates", "pos", "data"), _TRIPLES["xyz"]),
    **dict.fromkeys(("colors", "color", "colours", "rgb"), _TRIPLES["rgb"]),
    **dict.fromkeys(("normals", "normal"), _TRIPLES["normals"]),
}
"""Names of arrays (N, 3) in .npz, .h5 and open3d, and the three columns each stands for."""


def canonical_names(table: Table) -> Table:
    """The table with the package's names for its columns; a name that is taken already keeps the file's own.

    Case does not matter, and CloudCompare's prefix `scalar_` goes.
    """
    plain = {name: name.strip().lower().removeprefix("scalar_").replace(" ", "_") for name in table}
    taken = set(plain.values())
    named: Table = {}
    for name, values in table.items():
        wanted = _CANONICAL.get(plain[name], plain[name])
        if wanted != plain[name] and wanted in taken:
            wanted = plain[name]
        named[wanted if wanted not in named else name] = values
    return named


def layout_columns(layout: str) -> tuple[str, ...]:
    """The columns of a layout by name; raises `InputError` for an unknown one."""
    if layout not in LAYOUTS:
        raise unknown("layout", layout, LAYOUTS)
    return LAYOUTS[layout]


def name_columns(values: np.ndarray, path: Path, columns: Sequence[str] | None = None) -> Table:
    """Names the columns of an array without names.

    Args:
        values: (N, C), C at least 3.
        columns: their names; without them x, y, z, then as the number and the values suggest (see `guess_names`).

    Raises:
        InputError: for fewer than three columns, or names that do not match their number.
    """
    if values.ndim != 2:
        raise InputError(f"{path}: has the shape {_shape(values)}; a point cloud is points by columns (N, 3 or more)")
    if values.shape[1] < 3:
        raise InputError(f"{path}: has {values.shape[1]} columns; a point needs at least x, y and z")
    if columns is None:
        columns = guess_names(values)
    if len(columns) != values.shape[1]:
        raise InputError(f"{path}: has {values.shape[1]} columns, but {len(columns)} names were given: {', '.join(columns)}")
    if repeated := {name for name in columns if list(columns).count(name) > 1}:
        raise InputError(f"{path}: the column {', '.join(sorted(repeated))} is named twice")
    return {name: values[:, i] for i, name in enumerate(columns)}


def guess_names(values: np.ndarray) -> list[str]:
    """Names for the columns of (N, C): x y z, then by number and values.

    One more is the intensity, two are intensity and ring; three are normals if they have unit length and colours if they
    lie within 0 and 255; a whole-numbered column behind those is the label. What cannot be told is `column_4` and so on.
    """
    names = ["x", "y", "z"]
    rest = values[:, 3:]
    if rest.shape[1] in (1, 2):
        return names + ["intensity", "ring"][: rest.shape[1]]
    while rest.shape[1] >= 3:
        kind = _triple(rest[:, :3])
        if kind is None or kind[0] in names:
            break
        names += kind
        rest = rest[:, 3:]
    if rest.shape[1] == 1 and len(names) > 3 and np.all(rest == np.round(rest)):
        return [*names, "label"]
    return names + [f"column_{i}" for i in range(len(names) + 1, values.shape[1] + 1)]


def _triple(values: np.ndarray) -> tuple[str, ...] | None:
    """Whether three columns are normals (unit or zero length) or colours (0 to 255)."""
    if not len(values) or not np.isfinite(values).all():
        return None
    lengths = np.linalg.norm(values, axis=1)
    if np.all((np.abs(lengths - 1) < 0.01) | (lengths < 1e-6)) and values.min() < 0:
        return _TRIPLES["normals"]
    if values.min() >= 0 and values.max() <= 255:
        return _TRIPLES["rgb"]
    return None


def expand_groups(arrays: dict[str, np.ndarray], path: Path, columns: Sequence[str] | None = None) -> Table:
    """Columns of a set of named arrays, as .npz and .h5 hold them: (N, 3) points, colours, normals; (N,) anything.

    The array of the points may have more columns than three; they are named by `columns` or `guess_names`.
    """
    table: Table = {}
    for name, values in arrays.items():
        group = GROUPS.get(name.lower())
        if group == _TRIPLES["xyz"]:
            table |= name_columns(values, path, columns)
        elif group is not None and values.ndim == 2 and values.shape[1] >= 3:
            table |= {part: values[:, i] for i, part in enumerate(group)}
        elif values.ndim == 1 or (values.ndim == 2 and values.shape[1] == 1):
            table[name] = values.reshape(-1)
        elif values.ndim == 2:
            table |= {f"{name}_{i}": values[:, i] for i in range(values.shape[1])}
    return table


def _shape(values: np.ndarray) -> str:
    return " x ".join(map(str, values.shape)) or "one number"
