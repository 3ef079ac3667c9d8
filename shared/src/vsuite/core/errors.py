"""The one error that vsuite raises for what a user gave wrongly."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave is wrong.

    The message is one line that names the file or value, says what is wrong and what is allowed.
    Command lines print it without a traceback and exit with 2.
    """


def unknown(kind: str, given: str, allowed: Iterable[str]) -> InputError:
    """The error for a name that does not exist: it suggests the nearest, else lists what there is.

    Args:
        kind: what is being named, such as "model" or "option of segformer3d".
        given: the name that was not found.
        allowed: all names that exist.
    """
    names = sorted(allowed)
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    if near:
        return InputError(f"unknown {kind} {given!r}; did you mean {' or '.join(map(repr, near))}?")
    shown = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    return InputError(f"unknown {kind} {given!r}; there is {shown or 'none'}")
