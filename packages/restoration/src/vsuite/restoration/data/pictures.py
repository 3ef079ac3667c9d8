"""Folders of pictures, read as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError
from vsuite.restoration import writers
from vsuite.restoration.images import READ_ONLY, read_picture, warn_of_unread

SUFFIXES = (*writers.SUFFIXES, *READ_ONLY)

Picture = npt.NDArray[np.uint8]
"""(H, W, 3), RGB."""


def list_pictures(sources: str | Path | Sequence[str | Path]) -> list[Path]:
    """The pictures in folders (and their subfolders), sorted by path in each; a file stands for itself.

    A line warns of pictures whose format is not read.

    Raises:
        InputError: for a path that does not exist, and a folder without pictures.
    """
    found: list[Path] = []
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        path = Path(source)
        if not path.exists():
            raise InputError(f"{path}: no such folder of pictures")
        inside = [path] if path.is_file() else _pictures_in(path)
        if not inside:
            raise InputError(f"{path}: holds no pictures ({', '.join(SUFFIXES)})")
        found += inside
    return found


def _pictures_in(folder: Path) -> list[Path]:
    """By their names; hidden files are what other programs leave behind."""
    files = sorted(file for file in folder.rglob("*") if not file.name.startswith(".") and file.is_file())
    warn_of_unread(folder, files)
    return [file for file in files if file.suffix.lower() in SUFFIXES]


def read_rgb(path: str | Path) -> Picture:
    """A picture as 8-bit RGB, turned as its EXIF orientation says; transparency is dropped.

    Raises:
        InputError: see `read_picture`.
    """
    pixels = read_picture(path).pixels
    colours = pixels[..., :3] if pixels.shape[2] > 2 else pixels[..., :1].repeat(3, axis=2)
    if colours.dtype == np.uint16:
        return np.rint(colours / 257).astype(np.uint8)
    return np.ascontiguousarray(colours)
