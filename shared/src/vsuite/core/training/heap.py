"""Memory that a process has freed and not given back."""

from __future__ import annotations

import contextlib
import ctypes


def trim() -> None:
    """Gives freed memory back to the system, where the C library can (glibc).

    Tensors of ever new sizes, as lidar sweeps make them, leave holes in the heap that fit none of those that come, so that a
    long run would take several times the memory that it uses.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        ctypes.CDLL(None).malloc_trim(0)
