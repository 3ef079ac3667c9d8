"""Text for a terminal: tables that stay plain, and whole, when the output goes into a file or a pipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

UNLIMITED = 100_000  # columns; a pipe has no width, and cut or wrapped lines cannot be searched


def console(*, stderr: bool = False) -> Console:
    """A console on standard output (or error): no markup, no colours off a terminal, and no line breaks there unless COLUMNS asks."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else UNLIMITED
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False)


def new_table(*columns: str, right: Collection[str] = (), title: str | None = None) -> Table:
    """An empty table without lines. The columns named in `right` hold numbers: flush right and never broken."""
    from rich.table import Table
    from rich.text import Text

    heading = None if title is None else Text(title, style="bold")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), title=heading, title_justify="left", header_style="bold")
    for column in columns:
        number = column in right
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table
