"""Arrays of Python objects in `.npz` files, such as VideoPose3D's, read without running what is in them."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from vsuite.core.errors import InputError
from vsuite.core.unpickling import read_restricted


def read_objects(path: str | Path) -> dict[str, Any]:
    """The arrays of an `.npz` by name; what an array of objects holds comes as it is where the array is a single one.

    Raises:
        InputError: for a missing or damaged file, and objects other than arrays, plain containers, numbers and texts.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            return {name.removesuffix(".npy"): _read(archive, name) for name in archive.namelist() if name.endswith(".npy")}
    except InputError as error:
        raise InputError(f"{path}: holds objects that are not read: {str(error).split(': ', 1)[-1]}") from error
    except Exception as error:  # a damaged or hostile file may fail in any way
        raise InputError(f"{path}: cannot be read as .npz: {' '.join(str(error).split()) or type(error).__name__}") from error


def _read(archive: zipfile.ZipFile, name: str) -> Any:
    with archive.open(name) as stream:
        version = npy.read_magic(stream)
        header = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version](stream)
        if header[2] != np.dtype(object):
            with archive.open(name) as again:
                return npy.read_array(again, allow_pickle=False)
        with tempfile.NamedTemporaryFile(suffix=".pkl") as file:  # the reader wants one that it can map
            file.write(stream.read())
            file.flush()
            content = read_restricted(file.name)
    return content.item() if isinstance(content, np.ndarray) and content.ndim == 0 else content
