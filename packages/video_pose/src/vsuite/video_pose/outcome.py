"""What the tasks' predictions and evaluations have in common: how much is looked at, and names of results."""

from __future__ import annotations

from vsuite.core.batch import Summary, check_names, check_results, find_files  # still importable from here
from vsuite.core.files import write_csv

__all__ = ["Summary", "check_names", "check_results", "evenly", "file_name", "find_files", "free_name", "write_csv"]


def evenly(count: int, most: int | None) -> list[int]:
    """Numbers from 0 to below `count`, `most` of them at the most (None: all), evenly spread."""
    chosen = count if most is None else min(most, count)
    return [number * count // chosen for number in range(chosen)]


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
