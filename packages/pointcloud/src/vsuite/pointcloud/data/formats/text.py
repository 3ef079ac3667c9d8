"""Text: one point a line, separated by spaces, tabs, commas or semicolons, with or without a header."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.pointcloud.data.columns import Table, name_columns

_COMMENTS = ("#", "//")
_PTS = ("x", "y", "z", "intensity", "red", "green", "blue")


def read(path: Path, columns: Sequence[str] | None = None) -> Table:
    """Columns by the names given, else by the header (also one behind # or //), else by `guess_names`."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not text") from error
    header, body = _split(lines)
    if len(body) > 1 and len(body[0].split()) == 1 and body[0].strip().isdigit():
        body = body[1:]  # .pts begins with the number of points
    if not body:
        raise InputError(f"{path}: holds no points")
    separator = _separator(body[0])
    try:
        values = np.loadtxt(body, delimiter=separator, ndmin=2, comments=list(_COMMENTS))
    except ValueError as error:
        raise InputError(f"{path}: cannot be read as rows of numbers: {str(error).splitlines()[0].split(';')[0]}") from error
    names = columns
    if names is None and path.suffix.lower() == ".pts" and values.shape[1] == len(_PTS):
        names = _PTS
    elif names is None and header is not None:
        found = [word.strip().strip('"') for word in header.split(_separator(header))]
        names = found if len(found) == values.shape[1] and {"x", "y", "z"} <= {name.lower() for name in found} else None
        if names is None and not header.startswith(" "):
            given = f"{len(found)} names ({header.strip()[:60]})"
            raise InputError(f"{path}: its header has {given}, not x, y, z and one for each of {values.shape[1]} columns")
    return name_columns(values, path, names)


def write(path: Path, table: Table, separator: str) -> None:
    """Writes a header and one line a point; float32 with the 9 digits that bring it back exactly."""

    def form(values: np.ndarray) -> str:
        return "%d" if values.dtype.kind in "iub" else "%.9g" if values.dtype.itemsize <= 4 else "%.17g"

    dtype = [(name, values.dtype) for name, values in table.items()]
    records = np.empty(len(table["x"]), dtype)
    for name, values in table.items():
        records[name] = values
    with atomic_path(path) as temporary:
        np.savetxt(
            temporary, records, fmt=separator.join(form(values) for values in table.values()),
            header=separator.join(name.replace(" ", "_") for name in table), comments="" if separator == "," else "# ",
        )  # fmt: skip


def _split(lines: list[str]) -> tuple[str | None, list[str]]:
    """The header, if there is one, and the lines of the points. A header behind a comment sign begins with a space: it may be prose."""
    header = None
    for number, line in enumerate(lines):
        plain = line.strip()
        if not plain:
            continue
        sign = next((sign for sign in _COMMENTS if plain.startswith(sign)), None)
        if sign is not None:
            header = " " + plain[len(sign) :].strip()
            continue
        if _is_number(plain.split(_separator(plain))[0]):
            return header, [line for line in lines[number:] if line.strip()]
        if header is not None and not header.startswith(" "):
            return header, [line for line in lines[number:] if line.strip()]  # two lines of words: the second is an error of the body
        header = plain
    return header, []


def _separator(line: str) -> str | None:
    return next((sign for sign in (",", ";") if sign in line), None)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
