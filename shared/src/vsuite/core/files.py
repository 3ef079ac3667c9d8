"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import csv
import io
import os
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vsuite.core.errors import InputError


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """A full or read-only disk becomes an `InputError` that names the file, also where torch hides it behind an error of its own."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError) as error:
        reason = _system_error(error)
        if reason is None:
            raise
        raise InputError(f"{path}: cannot be written: {reason.strerror or reason}") from error


def _system_error(error: BaseException | None) -> OSError | None:
    """The error of the operating system that led to this one, if one did."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


@contextlib.contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary path beside `path` that is moved into place when the block ends without an error.

    The temporary file exists and is empty. Its name ends like the final one, so that writers that look at the suffix
    work. The data is synchronised to disk before the move, so that a power cut leaves the old file or the new one.

    Raises:
        InputError: where the folder cannot be written to, the disk is full, or `path` is a device or a pipe.
    """
    path = Path(path)
    beginning, *rest = path.name.split(".", 1)
    temporary = path.with_name(f".{beginning}.{uuid.uuid4().hex[:8]}.{rest[0] if rest else path.name}")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file() and not path.is_dir():
            raise InputError(f"{path}: cannot be written: it is no regular file")  # moved over /dev/null, a file would replace it
        temporary.touch(exist_ok=False)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def remove_leftovers(folder: str | Path) -> None:
    """Removes the temporary files of `atomic_path` that killed processes left in a folder."""
    for path in Path(folder).glob(f".*.{'[0-9a-f]' * 8}.*"):
        path.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Writes a text file (UTF-8) atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table atomically, its head first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
