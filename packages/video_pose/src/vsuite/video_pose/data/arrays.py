"""Arrays of numbers in `.npy` and `.npz` files, never by unpickling."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

DAMAGED = (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error, NotImplementedError, MemoryError)


def read_npy(path: str | Path) -> NDArray:
    """The array of a `.npy`; raises `InputError` for what cannot be read, and for objects."""
    try:
        with Path(path).open("rb") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except DAMAGED as error:
        raise _unreadable(path, "an array (.npy)", error) from error


def read_npz(path: str | Path, *names: str) -> dict[str, NDArray]:
    """Arrays of a `.npz` by name: those asked for, or all.

    Raises:
        InputError: for what cannot be read, objects, and a name that is not there.
    """
    there = names_of(path)
    wanted = names or there
    absent = [name for name in wanted if name not in there]
    if absent:
        raise InputError(f"{path}: has no array {absent[0]!r}; it has {', '.join(there[:20]) or 'nothing'}")
    try:
        found = {}
        with zipfile.ZipFile(path) as archive:
            for name in wanted:
                with archive.open(f"{name}.npy") as file:
                    found[name] = np.lib.format.read_array(file, allow_pickle=False)
        return found
    except DAMAGED as error:
        raise _unreadable(path, "arrays (.npz)", error) from error


def names_of(path: str | Path) -> list[str]:
    """The names of the arrays of a `.npz`; raises `InputError` for what is none."""
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
    except DAMAGED as error:
        raise _unreadable(path, "arrays (.npz)", error) from error


def _unreadable(path: str | Path, what: str, error: BaseException) -> InputError:
    return InputError(f"{path}: cannot be read as {what}: {' '.join(str(error).split())[:200] or type(error).__name__}")
