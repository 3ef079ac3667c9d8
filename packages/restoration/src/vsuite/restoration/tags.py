"""EXIF and TIFF tags: read from any byte order, changed, and written again."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

Entry = tuple[int, int, bytes]
"""Type, count, and the values in little-endian order."""

Tags = dict[int, Any]
"""Tag -> `Entry`, or for the pointers to EXIF, GPS and interoperability the tags there."""

POINTERS = (34665, 34853, 40965)
ORIENTATION, WIDTH, HEIGHT, EXIF, PIXEL_WIDTH, PIXEL_HEIGHT, DESCRIPTION = 274, 256, 257, 34665, 40962, 40963, 270
STRUCTURE = frozenset(
    [
        *(254, 255, *range(256, 260), 262, 263, 266, 273, *range(277, 285), 292, 293, 296, 297, 301, 317, 318, 319, *range(320, 326)),
        *(330, *range(332, 337), *range(338, 348), *range(512, 533), 700, 34675, 37724),
    ]
)
"""Tags of TIFF that describe how the pixels (or the layers of a program) lie in one file, which no other file takes over."""

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_WORDS = {5: 4, 10: 4}  # of the types that are pairs
_LARGEST = 1 << 24  # bytes of one tag; more is damage


def read_tags(data: Any) -> Tags:
    """The tags of an EXIF block, with or without its "Exif" start, or of a TIFF file; empty where they are damaged.

    Args:
        data: bytes, or a memory map of a file.
    """
    if data[:6] == b"Exif\0\0":
        data = data[6:]
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None:
        return {}
    try:
        big = struct.unpack_from(order + "H", data, 2)[0] == 43
        (start,) = struct.unpack_from(order + ("Q" if big else "L"), data, 8 if big else 4)
        return _read(data, start, order, big, depth=0)
    except (struct.error, IndexError, OverflowError):
        return {}


def _read(data: Any, start: int, order: str, big: bool, depth: int) -> Tags:
    tags: Tags = {}
    count_code, item_code, inline = ("Q", "HHQ", 8) if big else ("H", "HHL", 4)
    (count,) = struct.unpack_from(order + count_code, data, start)
    position = start + struct.calcsize("<" + count_code)
    for _ in range(min(count, 4096)):
        tag, kind, number = struct.unpack_from(order + item_code, data, position)
        value_at = position + struct.calcsize("<" + item_code)
        position = value_at + inline
        size = _SIZES.get(kind, 0) * number
        if not 0 < size <= _LARGEST:
            continue
        if size > inline:
            (value_at,) = struct.unpack_from(order + ("Q" if big else "L"), data, value_at)
        value = bytes(data[value_at : value_at + size])
        if len(value) < size:
            continue
        value = value if order == "<" else _swapped(value, kind)
        if tag in POINTERS:
            if depth < 2:
                tags[tag] = _read(data, int.from_bytes(value[: _SIZES[kind]], "little"), order, big, depth + 1)
        else:
            tags[tag] = (kind, number, value)
    return tags


def _swapped(value: bytes, kind: int) -> bytes:
    word = _WORDS.get(kind, _SIZES[kind])
    return b"".join(value[i : i + word][::-1] for i in range(0, len(value), word))


def orientation_of(tags: Tags) -> int:
    """1 to 8 as EXIF counts them; 1 where the tags say nothing sensible."""
    entry = tags.get(ORIENTATION)
    value = int.from_bytes(entry[2][:2], "little") if entry else 1
    return value if 1 <= value <= 8 else 1


def resized(tags: Tags, width: int, height: int) -> Tags:
    """The tags of a picture that lies upright and has these sides; sides are noted only where they were."""
    changed = _without_shape(tags)
    if ORIENTATION in changed:
        changed[ORIENTATION] = short(1)
    for tag, side in ((WIDTH, width), (HEIGHT, height)):
        if tag in changed:
            changed[tag] = long(side)
    if EXIF in changed:
        inner = dict(changed[EXIF])
        for tag, side in ((PIXEL_WIDTH, width), (PIXEL_HEIGHT, height)):
            if tag in inner:
                inner[tag] = long(side)
        changed[EXIF] = inner
    return changed


def _without_shape(tags: Tags) -> Tags:
    """Without the shape of an array in the description, as microscopes' programs (OME) and tifffile (JSON) leave it there."""
    entry = tags.get(DESCRIPTION)
    text = entry[2].rstrip(b"\0").decode("utf-8", "replace").strip() if entry else ""
    rest = {tag: value for tag, value in tags.items() if tag != DESCRIPTION}
    if text.startswith("<") and "<OME" in text:
        return rest
    try:
        said = json.loads(text) if text.startswith("{") else {}
    except (ValueError, RecursionError):
        said = {}
    if not isinstance(said, dict) or "shape" not in said:
        return dict(tags)
    kept = {key: value for key, value in said.items() if key != "shape"}
    if not kept:
        return rest
    value = json.dumps(kept).encode() + b"\0"
    return rest | {DESCRIPTION: (2, len(value), value)}


def short(*values: int) -> Entry:
    """16-bit numbers as the value of a tag."""
    return 3, len(values), struct.pack(f"<{len(values)}H", *values)


def long(*values: int) -> Entry:
    """32-bit numbers as the value of a tag."""
    return 4, len(values), struct.pack(f"<{len(values)}L", *values)


def ratio(value: float) -> Entry:
    """A fraction as the value of a tag."""
    return 5, 1, struct.pack("<2L", round(value * 10000), 10000)


def exif_block(tags: Tags) -> bytes:
    """An EXIF block, from the byte order mark on (formats differ in what they put before it)."""
    return b"II*\0\x08\0\0\0" + pack_tags(tags, 8)


def pack_tags(tags: Mapping[int, Any], offset: int, *, big: bool = False) -> bytes:
    """A directory of tags with its values and sub-directories.

    Args:
        offset: where in the file the result will lie.
        big: in the layout of BigTIFF.
    """
    count_code, item_code, pointer = ("<Q", "<HHQ", "<Q") if big else ("<H", "<HHL", "<L")
    inline = struct.calcsize(pointer)
    size = struct.calcsize(count_code) + len(tags) * (struct.calcsize(item_code) + inline) + inline
    table, values = [struct.pack(count_code, len(tags))], bytearray()
    for tag, entry in sorted(tags.items()):
        position = offset + size + len(values)
        if isinstance(entry, dict):
            kind, number, value = (18 if big else 4), 1, struct.pack(pointer, position)
            values += pack_tags(entry, position, big=big)
        else:
            kind, number, value = entry
            if len(value) > inline:
                values += value
                value = struct.pack(pointer, position)
        values += bytes(len(values) % 2)
        table.append(struct.pack(item_code, tag, kind, number) + value.ljust(inline, b"\0"))
    return b"".join(table) + bytes(inline) + bytes(values)
