"""PCD (Point Cloud Library): ascii and binary by numpy, binary_compressed by open3d.

open3d is not asked for the first two: from an ascii file that is cut off it returns whatever was in memory.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.pointcloud.data.columns import Table
from vsuite.pointcloud.data.formats import by_open3d

_KINDS = {"F": "f", "U": "u", "I": "i"}
_NEEDED = ("FIELDS", "SIZE", "TYPE", "POINTS", "DATA")


def read(path: Path) -> Table:
    """All fields of a file; raises `InputError` for a damaged header or a body that is too short."""
    content = path.read_bytes()
    header, size = _read_header(path, content)
    fields, count = _fields(path, header), int(header["POINTS"][0])
    if not count:
        raise InputError(f"{path}: holds no points")
    encoding = header["DATA"][0].lower()
    if encoding == "ascii":
        table = _read_ascii(path, content[size:], fields, count)
    elif encoding == "binary":
        table = _read_binary(path, content[size:], fields, count)
    elif encoding == "binary_compressed":
        table = _read_compressed(path, content[size:], count)
    else:
        raise InputError(f"{path}: damaged PCD header: DATA {encoding}; there is ascii, binary, binary_compressed")
    return _split_colours(table)


def write(path: Path, table: Table) -> None:
    """Writes binary, one field a column."""
    columns = {name.replace(" ", "_"): _plain(values) for name, values in table.items()}
    records = np.empty(len(table["x"]), [(name, values.dtype.str) for name, values in columns.items()])
    for name, values in columns.items():
        records[name] = values
    dtypes = [values.dtype for values in columns.values()]
    header = [
        "VERSION 0.7",
        "FIELDS " + " ".join(columns),
        "SIZE " + " ".join(str(dtype.itemsize) for dtype in dtypes),
        "TYPE " + " ".join(dtype.kind.upper() for dtype in dtypes),
        "COUNT " + " ".join("1" for _ in dtypes),
        f"WIDTH {len(records)}",
        "HEIGHT 1",
        "VIEWPOINT 0 0 0 1 0 0 0",
        f"POINTS {len(records)}",
        "DATA binary",
    ]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(("\n".join(header) + "\n").encode("ascii"))
        file.write(records.tobytes())


def _plain(values: np.ndarray) -> np.ndarray:
    values = values.astype("u1") if values.dtype.kind == "b" else values
    return values.astype(values.dtype.newbyteorder("<"))


def _read_header(path: Path, content: bytes) -> tuple[dict[str, list[str]], int]:
    """Entries of the header, and its length in bytes."""
    header: dict[str, list[str]] = {}
    position = 0
    while "DATA" not in header:
        newline = content.find(b"\n", position)
        line = content[position:newline].decode("ascii", "replace").strip()
        if newline < 0 or newline - position > 1 << 16 or (line and line[0] != "#" and not line[0].isalpha()):
            break
        position = newline + 1
        if line and line[0] != "#":
            key, *values = line.split()
            header[key.upper()] = values
    missing = [key for key in _NEEDED if not header.get(key)]
    if missing:
        raise InputError(f"{path}: damaged PCD header: {', '.join(missing)} missing")
    if not header["POINTS"][0].isdigit():
        raise InputError(f"{path}: damaged PCD header: POINTS {header['POINTS'][0]}")
    return header, position


def _fields(path: Path, header: dict[str, list[str]]) -> list[tuple[str, str, int]]:
    """Name, type and number of values of each field."""
    counts = header.get("COUNT") or ["1"] * len(header["FIELDS"])
    try:
        fields = [
            (name, _KINDS[kind.upper()] + str(int(size)), int(count))
            for name, kind, size, count in zip(header["FIELDS"], header["TYPE"], header["SIZE"], counts, strict=True)
        ]
        for _, dtype, _ in fields:
            np.dtype(dtype)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: damaged PCD header: FIELDS, SIZE, TYPE and COUNT do not fit together") from error
    return fields


def _read_ascii(path: Path, body: bytes, fields: list[tuple[str, str, int]], count: int) -> Table:
    lines = [line for line in body.decode("ascii", "replace").splitlines() if line.strip()]
    width = sum(number for _, _, number in fields)
    try:
        values = np.loadtxt(lines[:count], ndmin=2, comments=None) if lines else np.empty((0, width))
    except ValueError as error:
        raise InputError(f"{path}: its points cannot be read as numbers: {str(error).splitlines()[0]}") from error
    if values.shape != (count, width):
        raise InputError(f"{path}: the header says {count} points of {width} values, but {len(values)} of {values.shape[1]} follow")
    table, start = {}, 0
    for name, dtype, number in fields:
        if number == 1 and name != "_":
            table[name] = values[:, start].astype(dtype)
        start += number
    return table


def _read_binary(path: Path, body: bytes, fields: list[tuple[str, str, int]], count: int) -> Table:
    names = [name if name != "_" else f"_{i}" for i, (name, _, _) in enumerate(fields)]
    try:
        record = np.dtype([(name, "<" + dtype, (number,)) for name, (_, dtype, number) in zip(names, fields, strict=True)])
    except ValueError as error:
        raise InputError(f"{path}: damaged PCD header: {error}") from error
    if len(body) < count * record.itemsize:
        raise InputError(f"{path}: cut off: the header says {count} points of {record.itemsize} bytes, but only {len(body)} bytes follow")
    records = np.frombuffer(body, record, count)
    return {name: records[name][:, 0].copy() for name, (old, _, number) in zip(names, fields, strict=True) if number == 1 and old != "_"}


def _read_compressed(path: Path, body: bytes, count: int) -> Table:
    """The body begins with its compressed and uncompressed sizes."""
    if len(body) < 8 or len(body) < 8 + int.from_bytes(body[:4], "little"):
        raise InputError(f"{path}: cut off: {len(body)} bytes of compressed points are fewer than it says")
    table = by_open3d.read_points(path, count)
    return {name: values for name, values in table.items() if not name.startswith("_")}


def _split_colours(table: Table) -> Table:
    """PCL packs colours as bytes blue, green, red, alpha into one field `rgb` or `rgba`, often declared a float."""
    packed = table.pop("rgb", table.pop("rgba", None))
    if packed is None:
        return table
    whole = packed.view(np.uint32) if packed.dtype == np.float32 else packed.astype(np.uint32)
    return table | {name: (whole >> shift & 255).astype(np.uint8) for name, shift in (("red", 16), ("green", 8), ("blue", 0))}
