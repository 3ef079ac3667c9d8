"""Folders of pictures, read as 8-bit RGB."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")

Picture = npt.NDArray[np.uint8]
"""(H, W, 3), RGB."""


def list_pictures(sources: str | Path | Sequence[str | Path]) -> list[Path]:
    """The pictures in folders (and their subfolders), sorted by path in each; a file stands for itself.

    Raises:
        InputError: for a path that does not exist, and a folder without pictures.
    """
    found: list[Path] = []
    for source in [sources] if isinstance(sources, (str, Path)) else sources:
        path = Path(source)
        if not path.exists():
            raise InputError(f"{path}: no such folder of pictures")
        inside = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)
        if not inside:
            raise InputError(f"{path}: holds no pictures ({', '.join(SUFFIXES)})")
        found += inside
    return found


def read_rgb(path: str | Path) -> Picture:
    """A picture as 8-bit RGB, turned as its EXIF orientation says; transparency is dropped.

    Raises:
        InputError: for a file that is no picture, damaged or truncated.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            turned: Any = ImageOps.exif_transpose(file)
            if turned.mode.startswith("I"):  # 16 bit, which Pillow's own conversion would clip
                turned = Image.fromarray((np.asarray(turned).astype(np.float64) / 257).round().clip(0, 255).astype(np.uint8))
            return np.asarray(turned.convert("RGB"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: cannot be read as a picture: {' '.join(str(error).split())}") from error
