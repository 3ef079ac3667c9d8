"""Reading image files, strictly: a damaged file is an error that names it, never a picture with a grey half."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vsuite.core.errors import InputError

Pixels = NDArray[Any]  # H, W, C with C 1 (grey) or 3 (RGB), uint8, uint16 or float32 from 0 to 1

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".pgm", ".ppm", ".pbm", ".gif", ".jp2")
PNG = b"\x89PNG\r\n\x1a\n"

_READERS: dict[str, Callable[[Path], Pixels]] = {}  # a domain's own formats: ending -> reader


def register_reader(*endings: str) -> Callable[[Callable[[Path], Pixels]], Callable[[Path], Pixels]]:
    """Registers the decorated `function(path) -> pixels` for files whose names end so, ".dcm" say; what it gives is checked here."""

    def register(reader: Callable[[Path], Pixels]) -> Callable[[Path], Pixels]:
        _READERS.update(dict.fromkeys(endings, reader))
        return reader

    return register


def is_image(path: Path) -> bool:
    """Whether a name ends like an image's; hidden files (the `._*` companions of macOS, say) do not count."""
    return path.name.lower().endswith((*SUFFIXES, *_READERS)) and not path.name.startswith(".")


def read_image(source: str | Path | Pixels) -> Pixels:
    """One image: H, W, C, grey or RGB, in its own number type (uint8, uint16, or float32 from 0 to 1).

    The orientation that a camera notes is applied; transparent parts are laid over white.

    Args:
        source: a file, or an array H, W or H, W, C with C 1, 3 (RGB) or 4 (RGB and alpha).

    Raises:
        InputError: for a missing, empty, truncated or damaged file, number types and shapes that are no image, and NaN.
    """
    if isinstance(source, np.ndarray):
        return as_pixels(source, "the image array")
    path = Path(source)
    reader = next((reader for ending, reader in _READERS.items() if path.name.lower().endswith(ending)), None)
    if reader is not None:
        return as_pixels(reader(path), str(path))
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if not data:
        raise InputError(f"{path}: is empty")
    if problem := _damage(data):
        raise InputError(f"{path}: {problem}")
    decoded = _decode(data)
    if decoded is None:
        raise InputError(f"{path}: cannot be decoded: no image, damaged, or of an unknown format")
    if decoded.ndim == 3 and decoded.shape[2] >= 3:
        decoded = decoded[..., [2, 1, 0, *range(3, decoded.shape[2])]]  # opencv's order is blue, green, red
    return as_pixels(decoded, str(path))


def _decode(data: bytes) -> Pixels | None:
    import cv2

    # The only flags that keep alpha ignore the orientation, which matters for photographs.
    noted = data.startswith(b"\xff\xd8") or b"eXIf" in data or b"EXIF" in data
    flags = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH if noted else cv2.IMREAD_UNCHANGED
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error:
        return None


def as_pixels(array: NDArray[Any], name: str) -> Pixels:
    """An array as `read_image` gives it; `name` is what errors call it."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 2, 3, 4) or array.size == 0:
        raise InputError(f"{name}: an image is H, W or H, W, C with 1, 3 or 4 channels; got {_shape(array)}")
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * np.uint8(255)
    elif array.dtype.kind == "f":
        array = array.astype(np.float32)
        check_unit_range(array, name)
    elif array.dtype not in (np.uint8, np.uint16):
        raise InputError(f"{name}: pixels are uint8, uint16 or floats from 0 to 1; got {array.dtype}")
    return _over_white(array) if array.shape[2] in (2, 4) else array


def check_unit_range(array: NDArray[Any], name: str) -> None:
    """Raises `InputError` for floats that are not from 0 to 1."""
    low, high = float(array.min()), float(array.max())
    if not np.isfinite([low, high]).all():
        raise InputError(f"{name}: holds NaN or infinite values")
    if low < 0 or high > 1:
        raise InputError(f"{name}: floating-point pixels must be from 0 to 1; these are from {low:g} to {high:g}")


def _over_white(array: Pixels) -> Pixels:
    white = 1.0 if array.dtype.kind == "f" else float(np.iinfo(array.dtype).max)
    alpha = array[..., -1:].astype(np.float32) / white
    laid = array[..., :-1] * alpha + white * (1 - alpha)
    return laid.astype(np.float32) if array.dtype.kind == "f" else np.rint(laid).astype(array.dtype)


def _shape(array: NDArray[Any]) -> str:
    return " x ".join(map(str, array.shape)) or "one number"


# --- what the decoders would silently fill up ---


def _damage(data: bytes) -> str:
    """Why a file is not whole; empty if it is, or is of a format that the decoder itself checks."""
    if data.startswith(PNG):
        return _png_damage(data)
    if data.startswith(b"\xff\xd8"):
        return "" if _jpeg_is_whole(data) else "is truncated: the end of the JPEG image is missing"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP" and len(data) < 8 + struct.unpack_from("<I", data, 4)[0]:
        return "is truncated: the WebP file says that it is longer"
    return ""


def _png_damage(data: bytes) -> str:
    position = len(PNG)
    while position + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, position)
        end = position + 12 + length
        if end > len(data):
            break
        if zlib.crc32(data[position + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return "is damaged: a checksum of the PNG file is wrong"
        if data[position + 4 : position + 8] == b"IEND":
            return ""
        position = end
    return "is truncated: the end of the PNG file is missing"


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether an end marker follows the first scan; one before it may belong to a thumbnail."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xDA:  # start of scan
            return data.find(b"\xff\xd9", position) >= 0
        position += 1 if marker == 0xFF else 2 + length
    return False
