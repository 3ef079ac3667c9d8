"""Point clouds: reading any file that holds one into points and named columns, and writing them.

Readers of the single formats are in `formats/`; what they have in common (names of columns, checks, units) is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from vsuite.core.errors import InputError, unknown
from vsuite.pointcloud.data.columns import Table, canonical_names, layout_columns
from vsuite.pointcloud.data.formats import las, mesh, pcd, ply, raw, text

SWEEP_LIMIT = 1000.0
"""Metres: no point of a sweep lies farther from the sensor."""

Invalid = Literal["refuse", "drop", "keep"]

_NAMED: dict[str, Callable[[Path], Table]] = {".ply": ply.read, ".pcd": pcd.read, ".las": las.read, ".laz": las.read}
_UNNAMED: dict[str, Callable[[Path, Sequence[str] | None], Table]] = {
    ".bin": raw.read_bin,
    ".npy": raw.read_npy,
    ".npz": raw.read_npz,
    ".h5": raw.read_h5,
    ".hdf5": raw.read_h5,
    ".xyz": text.read,
    ".xyzn": text.read,
    ".xyzrgb": text.read,
    ".pts": text.read,
    ".txt": text.read,
    ".csv": text.read,
    ".asc": text.read,
}
_MESHES = (".obj", ".off", ".stl")
NUSCENES_CLOSE = 1.0
"""Metres: nuScenes' devkit leaves out what is nearer to the sensor in x and in y; its own vehicle's roof is there."""
SUFFIXES = tuple(sorted([*_NAMED, *_UNNAMED, *_MESHES]))
"""Endings of the files that `read_cloud` reads."""


@dataclass
class PointCloud:
    """Points and what is known of each.

    Attributes:
        points: (N, 3) float32, in metres.
        columns: name -> (N,): intensity, ring, elongation, time, label, instance, red, green, blue (0 to 255), nx, ny, nz,
            and whatever else the file has.
        path: the file it was read from.
        offset: (3,) float64, what was subtracted from the file's coordinates so that float32 can hold them; zero except
            for map coordinates far from the origin.
        class_names: names of the values of `label`, where the file holds them.
    """

    points: np.ndarray
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    path: Path | None = None
    offset: np.ndarray = field(default_factory=lambda: np.zeros(3))
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.points)

    def array(self, columns: Sequence[str] = ()) -> np.ndarray:
        """Points with the columns named behind them: (N, 3 + len(columns)) float32.

        Raises:
            InputError: naming a column that the cloud lacks, and those it has.
        """
        missing = [name for name in columns if name not in self.columns]
        if missing:
            have = ", ".join(self.columns) or "none beside x, y, z"
            raise InputError(f"{self.path or 'cloud'}: has no column {', '.join(missing)}; its columns are: {have}")
        return np.column_stack([self.points, *(self.columns[name].astype(np.float32) for name in columns)])

    def select(self, index: np.ndarray) -> PointCloud:
        """The points that an index or a mask (N,) chooses, with their columns."""
        return replace(self, points=self.points[index], columns={name: values[index] for name, values in self.columns.items()})


def read_cloud(
    path: str | Path,
    *,
    columns: Sequence[str] | None = None,
    layout: str | None = None,
    invalid: Invalid = "refuse",
    scale: float = 1.0,
    samples: int = 10_000,
    seed: int = 0,
) -> PointCloud:
    """Reads one file.

    Args:
        path: .ply, .pcd, .las, .laz, .bin, .npy, .npz, .h5, text (.xyz, .txt, .csv, .pts, ...) or a mesh (.obj, .off, .stl). The
            vertices of a .ply are its points also where it has faces.
        columns: names of the columns, for files that do not name them; x, y and z among them.
        layout: the same by name: "kitti" (.bin's default), "nuscenes" (default of .pcd.bin), "waymo".
        invalid: what to do with points whose coordinates are NaN or infinite.
        scale: factor for the coordinates, 0.001 for a file in millimetres.
        samples, seed: for meshes, the number of points that are drawn, evenly by area, and the seed of the draw.

    Raises:
        InputError: for a file that cannot be read, holds no points, or holds NaN or infinite coordinates.
    """
    path = Path(path)
    check_is_file(path)
    if not (np.isfinite(scale) and scale > 0):
        raise InputError(f"scale {scale:g}: a factor for coordinates is a positive number, such as 0.001 for millimetres")
    if columns is not None and layout is not None:
        raise InputError(f"{path}: give either columns or layout")
    names = list(layout_columns(layout)) if layout is not None else None if columns is None else list(columns)
    table = _read_table(path, names, samples, seed)
    class_names = ply.class_names(path) if path.suffix.lower() == ".ply" else raw.class_names(path)
    return _build(canonical_names(table), path, invalid, scale, class_names)


@dataclass(frozen=True)
class Reading:
    """How the files of a batch are read. Attributes: see `read_cloud`."""

    columns: Sequence[str] | None = None
    scale: float = 1.0
    invalid: Invalid = "refuse"

    def read(self, path: str | Path) -> PointCloud:
        """One file; raises `InputError` as `read_cloud`."""
        return read_cloud(path, columns=self.columns, scale=self.scale, invalid=self.invalid)


def check_is_file(path: Path) -> None:
    """Raises `InputError` where a path is no file, or an empty one."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a point cloud file is expected")
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if not path.is_file():
        raise InputError(f"{path}: is no regular file")
    if path.stat().st_size == 0:
        raise InputError(f"{path}: is empty (0 bytes)")


def is_cloud(path: Path) -> bool:
    """Whether the name ends like a file that `read_cloud` reads."""
    return path.suffix.lower() in SUFFIXES


def list_clouds(folder: str | Path) -> list[Path]:
    """The point cloud files directly in a folder, sorted by name; raises `InputError` where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    found = sorted(path for path in folder.iterdir() if path.is_file() and is_cloud(path) and not path.name.startswith("."))
    if not found:
        raise InputError(f"{folder}: holds no point cloud; files end in {', '.join(SUFFIXES)}")
    return found


def check_sweep(cloud: PointCloud) -> None:
    """Raises `InputError` for a cloud that cannot be a lidar sweep in metres around its sensor: one that is empty, or reaches too far."""
    if not len(cloud):
        raise InputError(f"{cloud.path or 'sweep'}: holds no points")
    reach = float(np.abs(cloud.points + cloud.offset).max())
    if reach > SWEEP_LIMIT:
        raise InputError(
            f"{cloud.path or 'sweep'}: reaches {reach:.0f} from the origin, but a sweep in metres around its sensor stays within "
            f"{SWEEP_LIMIT:.0f}; if these are millimetres, --scale 0.001 makes them metres (in Python: read_cloud(..., scale=0.001))"
        )


def without_close(cloud: PointCloud, metres: float | None = None) -> PointCloud:
    """The sweep without the points on the vehicle that carries the sensor: those nearer than this in x and in y, a square around it.

    Args:
        metres: 0 keeps all. None: 1 for nuScenes' files (.pcd.bin), as its devkit's `remove_close` has it, and 0 for others.

    Raises:
        InputError: for a negative distance, and where no point is left.
    """
    if metres is None:
        metres = NUSCENES_CLOSE if cloud.path is not None and cloud.path.name.lower().endswith(".pcd.bin") else 0.0
    if not metres >= 0:
        raise InputError(f"points nearer than {metres:g} m to the sensor cannot be left out; the distance is 0 or more")
    close = (np.abs(cloud.points[:, :2] + cloud.offset[:2]) < metres).all(1)
    if not close.any():
        return cloud
    if close.all():
        raise InputError(f"{cloud.path or 'sweep'}: all of its points are nearer than {metres:g} m to the sensor")
    return cloud.select(~close)


def write_cloud(path: str | Path, cloud: PointCloud, *, columns: Sequence[str] | None = None) -> None:
    """Writes a cloud by the ending of the name.

    .ply and .pcd (binary), .npz, .xyz, .txt and .csv (with a header) keep all columns, or those named. .bin is
    KITTI's x y z intensity and .pcd.bin nuScenes' x y z intensity ring, with 0 for a column that the cloud lacks, because those
    files have no names; .npy is x y z and the columns named.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix in (".bin", ".npy"):
        raw.write_array(path, _unnamed_array(path, cloud, columns))
        return
    if columns is not None:
        cloud.array(columns)
    kept = cloud.columns if columns is None else {name: cloud.columns[name] for name in columns}
    coordinates = cloud.points + cloud.offset if np.any(cloud.offset) else cloud.points
    table = {name: coordinates[:, i] for i, name in enumerate("xyz")} | kept
    if suffix == ".ply":
        ply.write(path, table, cloud.class_names)
    elif suffix == ".pcd":
        pcd.write(path, table)
    elif suffix == ".npz":
        raw.write_npz(path, coordinates, kept, cloud.class_names)
    elif suffix in (".xyz", ".txt", ".csv"):
        text.write(path, table, "," if suffix == ".csv" else " ")
    else:
        raise unknown(
            "ending of a point cloud to write", suffix or path.name, [".ply", ".pcd", ".npz", ".npy", ".bin", ".xyz", ".txt", ".csv"]
        )


# --- parts ---


def _read_table(path: Path, names: list[str] | None, samples: int, seed: int) -> Table:
    suffix = path.suffix.lower()
    if suffix in _UNNAMED:
        return _UNNAMED[suffix](path, names)
    if suffix not in _NAMED and suffix not in _MESHES:
        raise InputError(f"{path}: not a known point cloud format ({suffix or 'no ending'}); there is {', '.join(SUFFIXES)}")
    if names is not None:
        raise InputError(f"{path}: {suffix} files name their columns themselves; columns and layout are for .bin, .npy and text")
    return _NAMED[suffix](path) if suffix in _NAMED else mesh.read(path, samples, seed)


def _build(table: Table, path: Path, invalid: Invalid, scale: float, class_names: tuple[str, ...]) -> PointCloud:
    missing = [name for name in "xyz" if name not in table]
    if missing:
        raise InputError(f"{path}: has no column {', '.join(missing)}; its columns are: {', '.join(table) or 'none'}")
    lengths = {name: len(values) for name, values in table.items()}
    if wrong := [f"{name} {length}" for name, length in lengths.items() if length != lengths["x"]]:
        raise InputError(f"{path}: {lengths['x']} points, but other numbers of values: {', '.join(wrong)}")
    if not lengths["x"]:
        raise InputError(f"{path}: holds no points")
    coordinates = np.column_stack([table.pop(name) for name in "xyz"])
    valid = np.isfinite(coordinates).all(1)
    if not valid.all() and invalid != "keep":
        if invalid == "refuse":
            raise InputError(
                f"{path}: {np.sum(~valid)} of {len(valid)} points have NaN or infinite coordinates; "
                '--drop-invalid leaves them out (in Python: read_cloud(..., invalid="drop"))'
            )
        if not valid.any():
            raise InputError(f"{path}: none of its {len(valid)} points has finite coordinates")
        coordinates, table = coordinates[valid], {name: values[valid] for name, values in table.items()}
    points, offset = _to_float32(coordinates * scale if scale != 1 else coordinates)
    return PointCloud(points, _whole_numbers(_colours_to_255(table)), path, offset, class_names)


def _to_float32(coordinates: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates as float32; map coordinates, far from the origin for their extent, are moved near it first."""
    finite = coordinates[np.isfinite(coordinates).all(1)] if not np.isfinite(coordinates).all() else coordinates
    if coordinates.dtype == np.float64 and len(finite):
        low, high = finite.min(0), finite.max(0)
        middle = (low + high) / 2
        if np.abs(middle).max() > max(1e4, 2 * (high - low).max()):
            offset = np.round(middle)
            return np.ascontiguousarray(coordinates - offset, np.float32), offset
    return np.ascontiguousarray(coordinates, np.float32), np.zeros(3)


def _colours_to_255(table: Table) -> Table:
    """Colours as bytes: files also keep them as fractions, or with 16 bits."""
    names = [name for name in ("red", "green", "blue") if name in table]
    if len(names) < 3 or all(table[name].dtype == np.uint8 for name in names):
        return table
    colours = np.column_stack([table[name] for name in names]).astype(np.float64)
    highest = colours.max(initial=0)
    if not np.isfinite(colours).all() or colours.min(initial=0) < 0 or highest > 65535:
        return table
    if highest <= 1 and any(table[name].dtype.kind == "f" for name in names):
        colours *= 255
    elif highest > 255:
        colours /= 257
    return table | {name: np.round(colours[:, i]).astype(np.uint8) for i, name in enumerate(names)}


def _whole_numbers(table: Table) -> Table:
    """Labels that a file keeps as floats, as integers."""
    names = [name for name in ("label", "instance", "ring") if name in table and table[name].dtype.kind == "f"]
    whole = {name: np.nan_to_num(table[name], nan=0.5, posinf=0.5, neginf=0.5) for name in names}
    fitting = {name: values for name, values in whole.items() if np.all((values == np.round(values)) & (np.abs(values) < 2**31))}
    return table | {name: values.astype(np.int32) for name, values in fitting.items()}


def _unnamed_array(path: Path, cloud: PointCloud, columns: Sequence[str] | None) -> np.ndarray:
    if columns is None and path.suffix.lower() == ".bin":
        wanted = layout_columns("nuscenes" if path.name.lower().endswith(".pcd.bin") else "kitti")[3:]
        empty = np.zeros(len(cloud), np.float32)
        cloud = replace(cloud, columns={name: cloud.columns.get(name, empty) for name in wanted})
        columns = wanted
    array = cloud.array(columns or ())
    array[:, :3] += cloud.offset.astype(np.float32)
    return array
