"""Picture files out, a strip of rows at a time: PNG, TIFF and JPEG never hold the whole picture in memory."""

from __future__ import annotations

import contextlib
import io
import struct
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from vsuite.core.errors import InputError
from vsuite.core.files import atomic_path
from vsuite.restoration.images import Metadata, Pixels
from vsuite.restoration.tags import STRUCTURE, exif_block, long, pack_tags, ratio, short

SUFFIXES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}
WITH_ALPHA = ("PNG", "WEBP", "TIFF")
WITH_16_BITS = ("PNG", "TIFF")
LONGEST_SIDE = {"JPEG": 65535, "WEBP": 16383, "PNG": 2**31 - 1, "TIFF": 2**32 - 1, "BMP": 2**31 - 1}
BLOCK = 64  # rows that are encoded together; for JPEG a multiple of 64
IN_MEMORY = 1 << 28  # bytes up to which a picture that must be whole stays off the disk


class Writer(Protocol):
    """Takes a picture from top to bottom."""

    def write(self, rows: Pixels) -> None:
        """rows: n, W, C in the picture's number type; any n."""

    def close(self) -> None:
        """Ends the file, once all rows are there."""


def write_picture(
    path: str | Path,
    strips: Iterable[Pixels],
    size: tuple[int, int],
    channels: int,
    dtype: npt.DTypeLike,
    metadata: Metadata | None = None,
    *,
    quality: int = 95,
) -> None:
    """Writes a picture, whole or not at all.

    Args:
        path: its suffix says the format: `SUFFIXES`.
        strips: of rows (n, W, C), from top to bottom.
        size: height and width.
        channels: 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha).
        dtype: uint8, or uint16 for PNG and TIFF.
        metadata: to keep; it is taken as it is (see `Metadata.resized`).
        quality: of JPEG (always 4:4:4) and WebP, 1 to 100.

    Raises:
        InputError: for what the format cannot hold (see `check_format`), and where nothing can be written.
    """
    path, dtype = Path(path), np.dtype(dtype)
    name, metadata = check_format(path, size, channels, dtype), metadata or Metadata()
    repeated = name == "TIFF" and channels == 2 and dtype == np.uint16  # which other programs cannot read
    if (repeated or (name == "WEBP" and channels < 3)) and metadata.icc[16:20] == b"GRAY":
        metadata = replace(metadata, icc=b"")  # grey becomes colours there
    channels = 4 if repeated else channels
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        writer = _open(file, name, size, channels, dtype, metadata, quality)
        with contextlib.closing(_Blocks(writer, size[0])) as blocks:
            for strip in strips:
                blocks.write(strip[..., [0, 0, 0, 1]] if repeated else strip)


def check_format(path: str | Path, size: tuple[int, int], channels: int, dtype: npt.DTypeLike) -> str:
    """The name of the format that a path's suffix stands for; raises `InputError` where it cannot hold such a picture."""
    name = SUFFIXES.get(Path(path).suffix.lower())
    if name is None:
        raise InputError(f"{path}: pictures are written as {', '.join(SUFFIXES)}")
    if channels in (2, 4) and name not in WITH_ALPHA:
        raise InputError(f"{path}: {name} holds no transparency; {', '.join(WITH_ALPHA)} do")
    if np.dtype(dtype) == np.uint16 and name not in WITH_16_BITS:
        raise InputError(f"{path}: {name} holds 8 bits; {' and '.join(WITH_16_BITS)} hold 16")
    if max(size) > LONGEST_SIDE[name]:
        instead = "; use PNG or TIFF" if name in ("JPEG", "WEBP") else ""
        raise InputError(f"{path}: {size[1]} x {size[0]} is more than {name} can hold ({LONGEST_SIDE[name]} a side){instead}")
    return name


def _open(
    file: BinaryIO, name: str, size: tuple[int, int], channels: int, dtype: np.dtype[np.generic], metadata: Metadata, quality: int
) -> Writer:
    if name == "PNG":
        return PngWriter(file, size, channels, dtype, metadata)
    if name == "TIFF":
        return TiffWriter(file, size, channels, dtype, metadata)
    if name == "JPEG":
        return JpegWriter(file, size, metadata, quality)
    return WholeWriter(file, name, size, channels, metadata, quality)


class _Blocks:
    """Passes rows on in blocks of `BLOCK`, however they come, and counts them."""

    def __init__(self, writer: Writer, height: int) -> None:
        self.writer, self.left = writer, height
        self.waiting: list[Pixels] = []

    def write(self, rows: Pixels) -> None:
        self.waiting.append(rows)
        count = sum(map(len, self.waiting))
        if count < BLOCK:
            return
        rows = self.waiting[0] if len(self.waiting) == 1 else np.concatenate(self.waiting)
        whole = count - count % BLOCK
        for start in range(0, whole, BLOCK):
            self._pass(rows[start : start + BLOCK])
        self.waiting = [rows[whole:].copy()]

    def _pass(self, rows: Pixels) -> None:
        self.left -= len(rows)
        self.writer.write(np.ascontiguousarray(rows))

    def close(self) -> None:
        if any(map(len, self.waiting)):
            self._pass(np.concatenate(self.waiting))
        self.waiting = []
        if self.left == 0:  # otherwise an error is on its way
            self.writer.close()


class PngWriter:
    """PNG with the filter of each row that leaves the smallest differences."""

    COLOUR_TYPES: ClassVar = {1: 0, 2: 4, 3: 2, 4: 6}

    def __init__(self, file: BinaryIO, size: tuple[int, int], channels: int, dtype: np.dtype[np.generic], metadata: Metadata) -> None:
        self.file, self.step = file, channels * dtype.itemsize
        self.above = np.zeros((1, size[1] * self.step), np.uint8)
        self.packer = zlib.compressobj(6)
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">2L5B", size[1], size[0], 8 * dtype.itemsize, self.COLOUR_TYPES[channels], 0, 0, 0))
        if metadata.icc:
            self._chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc))
        if metadata.dpi:
            self._chunk(b"pHYs", struct.pack(">2LB", *(round(value / 0.0254) for value in metadata.dpi), 1))
        if metadata.tags:
            self._chunk(b"eXIf", exif_block(metadata.tags))
        texts = {key: value.encode() for key, value in metadata.text.items()}
        for key, value in (texts | ({"XML:com.adobe.xmp": metadata.xmp} if metadata.xmp else {})).items():
            self._chunk(b"iTXt", key.encode("latin-1", "replace")[:79] + b"\0\0\0\0\0" + value)

    def write(self, rows: Pixels) -> None:
        data = rows.astype(rows.dtype.newbyteorder(">"), copy=False).view(np.uint8).reshape(len(rows), -1)
        up = np.concatenate([self.above, data[:-1]])
        left, corner = np.zeros_like(data), np.zeros_like(data)
        left[:, self.step :], corner[:, self.step :] = data[:, : -self.step], up[:, : -self.step]
        best, cost = np.zeros((len(rows), 1 + data.shape[1]), np.uint8), np.full(len(rows), np.iinfo(np.int64).max)
        for number, guess in ((1, left), (2, up), (4, _paeth(left, up, corner))):
            difference = data - guess
            total = np.minimum(difference, 0 - difference).sum(1, dtype=np.int64)
            better = total < cost
            best[better, 0], best[better, 1:], cost[better] = number, difference[better], total[better]
        self.above = data[-1:].copy()
        self._data(self.packer.compress(best.data))

    def _data(self, packed: bytes) -> None:
        if packed:
            self._chunk(b"IDAT", packed)

    def _chunk(self, kind: bytes, data: bytes) -> None:
        self.file.write(struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data)))

    def close(self) -> None:
        self._data(self.packer.flush())
        self._chunk(b"IEND", b"")


def _paeth(left: npt.NDArray[np.uint8], up: npt.NDArray[np.uint8], corner: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Whichever neighbour is nearest to left + up - corner."""
    to_left = np.abs(up.astype(np.int16) - corner)
    to_up = np.abs(left.astype(np.int16) - corner)
    to_corner = np.abs(left.astype(np.int16) + up - 2 * corner.astype(np.int16))
    return np.where((to_left <= to_up) & (to_left <= to_corner), left, np.where(to_up <= to_corner, up, corner))


class TiffWriter:
    """TIFF in deflated strips with horizontal differences; BigTIFF where 4 GB may not be enough."""

    def __init__(self, file: BinaryIO, size: tuple[int, int], channels: int, dtype: np.dtype[np.generic], metadata: Metadata) -> None:
        self.file, self.size, self.channels, self.bits, self.metadata = file, size, channels, 8 * dtype.itemsize, metadata
        self.big = size[0] * size[1] * channels * dtype.itemsize > 0xF000_0000
        self.strips: list[tuple[int, int]] = []
        file.write(b"II+\0\x08\0\0\0" + bytes(8) if self.big else b"II*\0" + bytes(4))

    def write(self, rows: Pixels) -> None:
        differences = rows.copy()
        differences[:, 1:] -= rows[:, :-1]
        packed = zlib.compress(differences.astype(rows.dtype.newbyteorder("<"), copy=False).tobytes())
        self.strips.append((self.file.tell(), len(packed)))
        self.file.write(packed)

    def close(self) -> None:
        height, width = self.size
        offsets, counts = zip(*self.strips, strict=True)
        wide = 16, len(offsets), struct.pack(f"<{len(offsets)}Q", *offsets)
        tags = {tag: value for tag, value in self.metadata.tags.items() if tag not in STRUCTURE} | {
            256: long(width),
            257: long(height),
            258: short(*[self.bits] * self.channels),
            259: short(8),  # deflate
            262: short(1 if self.channels < 3 else 2),
            273: wide if self.big else long(*offsets),
            277: short(self.channels),
            278: long(BLOCK),
            279: long(*counts),
            317: short(2),  # differences
        }
        if self.channels in (2, 4):
            tags[338] = short(2)  # alpha, not multiplied in
        if self.metadata.dpi:
            tags |= {282: ratio(self.metadata.dpi[0]), 283: ratio(self.metadata.dpi[1]), 296: short(2)}
        if self.metadata.xmp:
            tags[700] = 1, len(self.metadata.xmp), self.metadata.xmp
        if self.metadata.icc:
            tags[34675] = 7, len(self.metadata.icc), self.metadata.icc
        self.file.write(bytes(self.file.tell() % 2))
        start = self.file.tell()
        self.file.write(pack_tags(tags, start, big=self.big))
        self.file.seek(8 if self.big else 4)
        self.file.write(struct.pack("<Q" if self.big else "<L", start))


class JpegWriter:
    """JPEG, 4:4:4, encoded in strips whose scans are joined.

    Every row of blocks ends with a restart marker, numbered 0 to 7 in turn, at which decoders forget all that went before. A strip
    of 64 rows has seven inside, so that marker 7 joins it to the next one.
    """

    def __init__(self, file: BinaryIO, size: tuple[int, int], metadata: Metadata, quality: int) -> None:
        self.file, self.size, self.metadata, self.quality = file, size, metadata, quality
        self.first = True

    def write(self, rows: Pixels) -> None:
        from PIL import Image

        extra: dict[str, Any] = {}
        if self.first:
            extra = {"icc_profile": self.metadata.icc, "exif": _prefixed(exif_block(self.metadata.tags)) if self.metadata.tags else b""}
            extra |= {"dpi": tuple(map(round, self.metadata.dpi))} if self.metadata.dpi else {}
            extra |= {"xmp": self.metadata.xmp} if self.metadata.xmp else {}
        buffer = io.BytesIO()
        image = Image.fromarray(rows[..., 0] if rows.shape[2] == 1 else rows)
        try:
            image.save(buffer, "JPEG", quality=self.quality, subsampling=0, restart_marker_rows=1, **extra)
        except ValueError as error:  # EXIF or XMP beyond the 64 KB of a segment
            raise InputError(f"JPEG cannot hold its metadata: {error}; --strip drops it") from error
        data = buffer.getvalue()
        frame, scan = _jpeg_parts(data)
        if self.first:
            header = bytearray(data[:scan])
            header[frame + 5 : frame + 7] = struct.pack(">H", self.size[0])
            self.file.write(header)
        else:
            self.file.write(b"\xff\xd7")
        self.file.write(data[scan:-2])
        self.first = False

    def close(self) -> None:
        self.file.write(b"\xff\xd9")


def _prefixed(exif: bytes) -> bytes:
    return b"Exif\0\0" + exif


def _jpeg_parts(data: bytes) -> tuple[int, int]:
    """Where the frame header and the entropy-coded data of a baseline JPEG start."""
    position, frame = 2, 0
    while True:
        marker, length = data[position + 1], struct.unpack_from(">H", data, position + 2)[0]
        if marker == 0xC0:
            frame = position
        position += 2 + length
        if marker == 0xDA:
            return frame, position


class WholeWriter:
    """WebP and BMP, which Pillow encodes in one go; a large picture waits in a file, not in memory."""

    def __init__(self, file: BinaryIO, name: str, size: tuple[int, int], channels: int, metadata: Metadata, quality: int) -> None:
        self.file, self.name, self.metadata, self.quality = file, name, metadata, quality
        shape = (*size, channels)
        self.pixels: Pixels
        if np.prod(shape, dtype=np.int64) <= IN_MEMORY:
            self.pixels = np.empty(shape, np.uint8)
        else:
            with tempfile.TemporaryFile(dir=Path(file.name).parent) as waiting:
                self.pixels = np.memmap(waiting, np.uint8, "w+", shape=shape)
        self.filled = 0

    def write(self, rows: Pixels) -> None:
        self.pixels[self.filled : self.filled + len(rows)] = rows
        self.filled += len(rows)

    def close(self) -> None:
        from PIL import Image

        image = Image.fromarray(self.pixels[..., 0] if self.pixels.shape[2] == 1 else self.pixels)
        options: dict[str, object] = {}
        if self.name == "WEBP":
            image = image.convert("RGBA" if image.mode == "LA" else "RGB") if image.mode in ("L", "LA") else image
            exif = exif_block(self.metadata.tags) if self.metadata.tags else b""
            options = {"quality": self.quality, "exact": True, "icc_profile": self.metadata.icc, "exif": exif, "xmp": self.metadata.xmp}
        elif self.metadata.dpi:
            options = {"dpi": self.metadata.dpi}
        image.save(self.file, self.name, **options)


def strips_of(pixels: Pixels, rows: int = 1024) -> Iterator[Pixels]:
    """A whole picture in strips."""
    return (pixels[start : start + rows] for start in range(0, len(pixels), rows))
