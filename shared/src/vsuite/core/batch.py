"""The bookkeeping of batches: which files are meant, whether their results may be written, and what became of each."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from vsuite.core.errors import InputError


@dataclass
class Summary:
    """What became of a batch: a line for each result, and what is wrong with the inputs that failed."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def count(self) -> int:
        """Results."""
        return len(self.lines)

    @property
    def total(self) -> int:
        """Results and failures."""
        return len(self.lines) + len(self.failed)


def find_files(
    inputs: Sequence[str | Path], inside: Callable[[Path], list[Path]], usable: Callable[[Path], bool], what: str
) -> tuple[list[Path], list[str]]:
    """What is meant by files, folders and patterns such as "clips/*.json", each once.

    Args:
        inside: what a folder means, in order: itself, or what lies in it.
        usable: which of what a pattern matches is meant.
        what: is looked for, as errors call it.

    Returns:
        What is there, and what is wrong with inputs that mean nothing: a line each.

    Raises:
        InputError: where there is nothing at all.
    """
    found: list[Path] = []
    failed: list[str] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            meant = inside(path)
        elif path.exists():
            meant = [path]
        else:
            meant = [match for name in sorted(glob.glob(str(given), recursive=True)) if usable(match := Path(name))]
        found += meant
        if not meant:
            failed.append(f"{path}: holds no {what}" if path.is_dir() else f"{path}: no such file or folder, and no file matches it")
    if failed and not found:
        raise InputError(failed[0])
    return list(dict.fromkeys(found)), list(dict.fromkeys(failed))


def check_names(names: Sequence[str]) -> None:
    """Raises `InputError` where two inputs have one name, and so their results."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise InputError(f"two inputs are called {name!r}, and their results would be too; predict them into different folders")
        seen.add(name)


def refuse_existing(path: Path, *, overwrite: bool) -> None:
    """Raises `InputError` where a result is there, which nobody wants replaced."""
    if path.exists() and not overwrite:
        raise InputError(f"{path}: exists; --overwrite replaces it")


def check_results(out: Path, names: Iterable[str], *, overwrite: bool) -> None:
    """Raises `InputError` where `out` is a file, or holds one of these results, which nobody wants replaced."""
    if out.is_file():
        raise InputError(f"{out}: is a file; --out names a folder")
    for name in names:
        refuse_existing(out / name, overwrite=overwrite)


def complaint(error: InputError, source: Path) -> str:
    """What is wrong with a file, with its name in any case."""
    return str(error) if str(source) in str(error) else f"{source}: {error}"


def check_failed(failed: Sequence[str], total: int, what: str = "failed") -> None:
    """Raises `InputError` where inputs failed: that of the only one, else how many of all did, and the first.

    Args:
        failed: what is wrong with each.
        total: inputs, with those that did not fail.
        what: became of them, such as "images could not be used".
    """
    if failed:
        raise InputError(failed[0] if total == 1 else f"{len(failed)} of {total} {what}; first: {failed[0]}")
