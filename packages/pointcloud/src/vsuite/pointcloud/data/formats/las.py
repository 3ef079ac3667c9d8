"""LAS and LAZ, by laspy (the extra `las`)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vsuite.core.errors import InputError
from vsuite.pointcloud.data.columns import Table

_CHUNK = 1_000_000
_SHORTEST_HEADER = 227


def read(path: Path) -> Table:
    """Scaled coordinates (float64) and all dimensions of the file that are not zero throughout."""
    try:
        import laspy
    except ImportError as error:
        raise InputError(f'{path}: reading .las and .laz needs laspy: pip install "vsuite-pointcloud[las]"') from error
    _check_header(path)
    try:
        with laspy.open(path, laz_backend=laspy.LazBackend.Lazrs) as reader:  # its parallel twin ends the process on damaged files
            expected = reader.header.point_count
            chunks = [_table(chunk) for chunk in reader.chunk_iterator(_CHUNK)]
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # many kinds, and panics of lazrs, which are no `Exception`
        raise InputError(f"{path}: not a readable LAS file: {(str(error) or type(error).__name__).splitlines()[0]}") from error
    table = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]} if chunks else {}
    found = len(table.get("x", ()))
    if found != expected:
        raise InputError(f"{path}: cut off: the header says {expected} points, but {found} follow")
    if not found:
        raise InputError(f"{path}: holds no points")
    return {name: values for name, values in table.items() if name in ("x", "y", "z") or values.any()}


def _table(points: object) -> Table:
    """One chunk (laspy's record of points), by dimension."""
    table = {name: np.array(getattr(points, name), np.float64) for name in "xyz"}
    for name in points.point_format.dimension_names:  # type: ignore[attr-defined]
        values = np.array(points[name])  # type: ignore[index]
        if name not in ("X", "Y", "Z") and values.ndim == 1:
            table[name] = values
    return table


def _check_header(path: Path) -> None:
    """Refuses a header that promises more than the file can hold: laspy believes it, and would read or allocate without end."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_SHORTEST_HEADER + 28)
        chunks_fit = _chunks_fit(file, head, size)
    if len(head) < _SHORTEST_HEADER or head[:4] != b"LASF":
        raise InputError(f"{path}: not a readable LAS file: its header is missing or cut off")
    header_size, start, num_records, form, length, count = struct.unpack_from("<HIIBHI", head, 94)
    minor = head[25]
    extended, large_count = struct.unpack_from("<IQ", head, 243) if minor >= 4 and len(head) >= 255 else (0, 0)
    count = large_count or count
    compressed = bool(form & 0xC0)  # LAZ
    if compressed and not chunks_fit:
        raise InputError(f"{path}: cut off or damaged: its table of compressed chunks does not lie within the file")
    if start > size or header_size > start or num_records * 54 > start - header_size or extended * 60 > size:
        raise InputError(f"{path}: damaged LAS header: its parts do not fit into the {size} bytes of the file")
    if not compressed and start + count * length > size:
        raise InputError(f"{path}: cut off: the header says {count} points of {length} bytes, but only {size - start} bytes follow")


def _chunks_fit(file: BinaryIO, head: bytes, size: int) -> bool:
    """Whether the table of chunks of a LAZ file, whose place stands before the points, is in the file: lazrs ends the process otherwise."""
    if len(head) < _SHORTEST_HEADER:
        return False
    file.seek(struct.unpack_from("<I", head, 96)[0])
    place = file.read(8)
    table = struct.unpack("<q", place)[0] if len(place) == 8 else 0
    if not 0 < table <= size - 8:
        return False
    file.seek(table + 4)
    num_chunks = struct.unpack("<I", file.read(4))[0]
    return num_chunks <= size
