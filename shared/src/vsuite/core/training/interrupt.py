"""Ctrl-C while training: what is being done is finished and saved first."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

NOTE = b"\ninterrupted: finishing the step and saving it; Ctrl-C again stops at once\n"


@dataclass
class Interrupt:
    """Whether the user wants to stop."""

    wanted: bool = False


@contextlib.contextmanager
def deferred_interrupt(*, alone: bool) -> Iterator[Interrupt]:
    """Inside, the first Ctrl-C is only noted, and the second one interrupts at once.

    Processes that are forked inside inherit this, so that those which load samples go on with it.

    Args:
        alone: whether there is one process; several would each stop at a step of their own, so all are interrupted at once.
            So it is outside the main thread too, and where the caller has a handler of its own.
    """
    interrupt = Interrupt()
    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if not (alone and ours):
        yield interrupt
        return
    process = os.getpid()

    def note(*_: Any) -> None:
        interrupt.wanted = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.getpid() == process:
            with contextlib.suppress(OSError):
                os.write(2, NOTE)  # past Python's streams, which may be in the middle of a line

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
