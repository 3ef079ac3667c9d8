"""What the tasks' predictions and evaluations have in common: inputs, names of results, tables."""

from __future__ import annotations

import csv
import glob
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vsuite.core.errors import InputError
from vsuite.core.files import write_text


@dataclass
class Summary:
    """What became of a batch: a line for each result, and what is wrong with the inputs that failed."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def evenly(count: int, most: int | None) -> list[int]:
    """Numbers from 0 to below `count`, `most` of them at the most (None: all), evenly spread."""
    chosen = count if most is None else min(most, count)
    return [number * count // chosen for number in range(chosen)]


def find_files(inputs: Sequence[str | Path], inside: Callable[[Path], list[Path]], usable: Callable[[Path], bool], what: str) -> list[Path]:
    """What is meant by files, folders and patterns such as "clips/*.json", each once.

    Args:
        inside: what a folder means, in order: itself, or what lies in it.
        usable: which of what a pattern matches is meant.
        what: is looked for, as errors call it.

    Raises:
        InputError: for what does not exist, and folders and patterns without any of it.
    """
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            meant = inside(path)
        elif path.exists():
            meant = [path]
        else:
            meant = [match for name in sorted(glob.glob(str(given), recursive=True)) if usable(match := Path(name))]
        if not meant:
            raise InputError(f"{given}: " + (f"holds no {what}" if path.is_dir() else "no such file or folder, and no file matches it"))
        found += meant
    return list(dict.fromkeys(found))


def check_results(out: Path, names: Iterable[str], *, overwrite: bool) -> None:
    """Raises `InputError` where `out` is a file, or holds one of these results, which nobody wants replaced."""
    if out.is_file():
        raise InputError(f"{out}: is a file; --out names a folder")
    existing = next((out / name for name in names if (out / name).exists()), None)
    if existing is not None and not overwrite:
        raise InputError(f"{existing}: exists; --overwrite replaces it")


def check_names(names: Sequence[str]) -> None:
    """Raises `InputError` where two inputs have one name, and so their results."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"two inputs are called {name!r}, and their results would be too; predict them into different folders")
        seen.add(name)


def file_name(text: str) -> str:
    """A text as the name of a file: nothing in it leads to another folder."""
    return "".join(letter if letter.isalnum() or letter in "-_. " else "-" for letter in text).strip(". ") or "unnamed"


def free_name(text: str, taken: set[str]) -> str:
    """`file_name`, with a number behind it where that is taken; it is taken from then on."""
    name = first = file_name(text)
    number = 1
    while name in taken:
        number += 1
        name = f"{first}_{number}"
    taken.add(name)
    return name


def write_csv(path: str | Path, rows: Iterable[Sequence[Any]]) -> None:
    """Writes a table, its head first."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())
