"""Memory that a process has freed: kept for the next step, or given back. For glibc; elsewhere nothing happens."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
# What glibc's own thresholds rise to in a process that frees large blocks. It no longer raises them once one was set.
LARGEST_MMAP_THRESHOLD, DEFAULT_MMAP_MAX = 32 << 20, 65_536


def trim() -> None:
    """Gives freed memory back to the system.

    Tensors of ever new sizes, as lidar sweeps make them, leave holes in the heap that fit none of those that come, so that a
    long run would take several times the memory that it uses.
    """
    _call("malloc_trim", 0)


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Meanwhile the memory of a freed tensor serves the next one, however large.

    By default each tensor of 32 MiB or more is mapped afresh and unmapped, page by page: half the time of a training step
    on a CPU that has many of them. `trim` now and then keeps what lies idle in bounds.
    """
    _call("mallopt", M_MMAP_MAX, 0)
    _call("mallopt", M_TRIM_THRESHOLD, -1)  # never by itself
    try:
        yield
    finally:
        no_longer_reused()


def no_longer_reused(*_: object) -> None:
    """Ends `reused`, also in a process that was forked meanwhile, such as a worker that loads data."""
    _call("mallopt", M_MMAP_MAX, DEFAULT_MMAP_MAX)
    _call("mallopt", M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
    _call("mallopt", M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
    trim()


def _call(function: str, *arguments: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):  # another system, or another C library
        getattr(ctypes.CDLL(None), function)(*arguments)
