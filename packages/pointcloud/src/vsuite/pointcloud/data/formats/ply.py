"""PLY: ascii and binary of both byte orders, with any columns.

The header and the vertices are read by numpy, since open3d answers a file that is cut off with the memory it happened to get, and
fills missing coordinates with zero. Files whose vertices are not a plain table at the start go through open3d, after the checks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.pointcloud.data.columns import Table
from vsuite.pointcloud.data.formats import by_open3d

_TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2", "ushort": "u2", "uint16": "u2",
    "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4", "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
_NAMES = {"i1": "char", "u1": "uchar", "i2": "short", "u2": "ushort", "i4": "int", "u4": "uint", "f4": "float", "f8": "double"}
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LONGEST_HEADER = 1 << 16


@dataclass
class _Header:
    """What stands before `end_header`; an element is (name, count, properties), a property (name, type or "list")."""

    byte_order: str
    elements: list[tuple[str, int, list[tuple[str, str]]]]
    size: int
    class_names: tuple[str, ...] = ()

    @property
    def vertices(self) -> tuple[str, int, list[tuple[str, str]]]:
        return next(element for element in self.elements if element[0] == "vertex")


def read(path: Path) -> Table:
    """The vertices of a file; raises `InputError` for a damaged header or a body that is too short."""
    header = _read_header(path)
    _, count, properties = header.vertices
    if not count:
        raise InputError(f"{path}: holds no points")
    missing = [name for name in "xyz" if name not in {name.lower() for name, _ in properties}]
    if missing:
        raise InputError(f"{path}: its vertices have no {', '.join(missing)}; they have: {', '.join(name for name, _ in properties)}")
    if header.elements[0][0] != "vertex" or any(kind == "list" for _, kind in properties):
        return by_open3d.read_points(path, count)
    content = path.read_bytes()[header.size :]
    return _read_ascii(path, content, header) if not header.byte_order else _read_binary(path, content, header)


def class_names(path: Path) -> tuple[str, ...]:
    """The names of label values that `write` left in the header."""
    return _read_header(path).class_names


def write(path: Path, table: Table, class_names: tuple[str, ...] = ()) -> None:
    """Writes binary little endian, one property a column; the types that PLY lacks become double."""
    columns = {name.replace(" ", "_"): _supported(values) for name, values in table.items()}
    records = np.empty(len(table["x"]), [(name, values.dtype.str) for name, values in columns.items()])
    for name, values in columns.items():
        records[name] = values
    lines = ["ply", "format binary_little_endian 1.0"]
    if class_names:
        lines.append(f"comment class_names {json.dumps(list(class_names))}")
    lines.append(f"element vertex {len(records)}")
    lines += [f"property {_NAMES[values.dtype.str[1:]]} {name}" for name, values in columns.items()]
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(("\n".join([*lines, "end_header"]) + "\n").encode("ascii"))
        file.write(records.tobytes())


def _supported(values: np.ndarray) -> np.ndarray:
    if values.dtype.kind == "b":
        return values.astype("u1")
    if values.dtype.str[1:] in _NAMES:
        return values.astype(values.dtype.newbyteorder("<"))
    if values.dtype.kind in "iu" and len(values) and np.abs(values).max() < 2**31:
        return values.astype("<i4")
    return values.astype("<f4" if values.dtype.itemsize < 4 else "<f8")


def _read_header(path: Path) -> _Header:
    with path.open("rb") as file:
        start = file.read(_LONGEST_HEADER)
    if not start.startswith(b"ply"):
        raise InputError(f"{path}: damaged PLY header: the file does not begin with 'ply'")
    end = start.find(b"end_header")
    newline = start.find(b"\n", end)
    if end < 0 or newline < 0:
        raise InputError(f"{path}: damaged PLY header: 'end_header' is missing")
    header = _Header("", [], newline + 1)
    known = False
    for line in start[:end].decode("ascii", "replace").splitlines()[1:]:
        words = line.split()
        try:
            known |= _read_header_line(words, line, header)
        except (ValueError, IndexError, KeyError) as error:
            raise InputError(f"{path}: damaged PLY header: cannot understand the line {line.strip()[:60]!r}") from error
    if not known:
        raise InputError(f"{path}: damaged PLY header: it does not say its format (ascii or binary)")
    if not any(name == "vertex" for name, _, _ in header.elements):
        raise InputError(f"{path}: damaged PLY header: it has no element 'vertex'")
    return header


def _read_header_line(words: list[str], line: str, header: _Header) -> bool:
    """Adds one line to a header; returns whether it was the format."""
    if not words or words[0] == "obj_info":
        return False
    if words[0] == "format":
        header.byte_order = _FORMATS[words[1]]
        return True
    if words[0] == "comment":
        if len(words) > 2 and words[1] == "class_names":
            header.class_names = tuple(json.loads(line.split("class_names", 1)[1]))
    elif words[0] == "element":
        count = int(words[2])
        if count < 0:
            raise ValueError(count)
        header.elements.append((words[1], count, []))
    elif words[0] == "property":
        kind = "list" if words[1] == "list" else _TYPES[words[1]]
        header.elements[-1][2].append((words[-1], kind))
    else:
        raise ValueError(words[0])
    return False


def _read_binary(path: Path, content: bytes, header: _Header) -> Table:
    _, count, properties = header.vertices
    dtype = _record(path, properties, header.byte_order)
    if len(content) < count * dtype.itemsize:
        raise InputError(
            f"{path}: cut off: the header says {count} points of {dtype.itemsize} bytes, but only {len(content)} bytes follow "
            f"({len(content) // dtype.itemsize} points)"
        )
    records = np.frombuffer(content, dtype, count)
    return {name: records[name].astype(records.dtype[name].newbyteorder("=")) for name, _ in properties}


def _read_ascii(path: Path, content: bytes, header: _Header) -> Table:
    _, count, properties = header.vertices
    lines = content.decode("ascii", "replace").splitlines()[:count]
    if len(lines) < count or not lines[-1].strip():
        raise InputError(f"{path}: cut off: the header says {count} points, but only {len(lines)} lines follow")
    dtype = _record(path, properties, "=")
    try:
        values = np.loadtxt(lines, ndmin=2, comments=None)
    except ValueError as error:
        raise InputError(f"{path}: its points cannot be read as numbers: {str(error).splitlines()[0]}") from error
    if values.shape != (count, len(properties)):
        raise InputError(
            f"{path}: the header names {len(properties)} values a point, but {values.shape[1]} follow, of {len(values)} points"
        )
    return {name: values[:, i].astype(dtype[name]) for i, (name, _) in enumerate(properties)}


def _record(path: Path, properties: list[tuple[str, str]], byte_order: str) -> np.dtype:
    try:
        return np.dtype([(name, byte_order + kind) for name, kind in properties])
    except ValueError as error:
        raise InputError(f"{path}: damaged PLY header: {error}") from error
