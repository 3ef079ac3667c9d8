"""What a run says while it goes: lines in `metrics.jsonl`, and a bar or plain lines on the terminal."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from vsuite.core.files import write_text, writing


def read_records(path: str | Path) -> list[dict[str, Any]]:
    """The lines of `metrics.jsonl`; a torn last line (of a run that was killed, or that goes on) is left out."""
    records = []
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []
    for line in lines[:-1]:  # what follows the last line break is empty or torn
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def truncate_records(path: Path, step: int) -> None:
    """Drops what was recorded after `step`, since a resumed run records it again."""
    kept = [record for record in read_records(path) if record["step"] <= step]
    write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Adds one line. Numbers that are not finite become null, since JSON has no name for them."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(_finite(record)) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def duration(seconds: float) -> str:
    """1:02:03, or 2:03 below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class Progress:
    """A bar with an estimate of the remaining time on a terminal; else a plain line whenever losses are logged.

    Args:
        total: steps of the whole run.
        shown: whether to say anything; of several processes one does.
    """

    def __init__(self, total: int, *, shown: bool = True) -> None:
        from vsuite.core.terminal import console

        self.total = total
        self.numbers = ""
        self.shown = shown
        self.console = console(stderr=True)
        self.bar: Any = None
        self.begin(0)

    def begin(self, start: int) -> None:
        """Starts the clock at a step: 0, or where a resumed run continues."""
        self.start = start
        self.began = self.drawn = time.perf_counter()

    def _make_bar(self) -> Any:
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bar

        # No refreshing thread: loader processes are forked from this one, and a thread may hold a lock at that moment.
        bar = Bar(BarColumn(bar_width=30), TextColumn("{task.fields[text]}"), console=self.console, auto_refresh=False)
        self.task = bar.add_task("training", total=self.total, completed=self.start, text="")
        bar.start()
        return bar

    def rate(self, step: int) -> str:
        """Speed and remaining time, from all steps of this process, validation included."""
        elapsed = time.perf_counter() - self.began
        speed = (step - self.start) / elapsed if elapsed > 0 else 0.0
        left = duration((self.total - step) / speed) if speed else "?"
        return f"{speed:.3g} steps/s  {left} left"

    def advance(self, step: int) -> None:
        """Moves the bar, at most some times a second."""
        now = time.perf_counter()
        if not self.shown or not self.console.is_terminal or (now - self.drawn < 0.25 and step < self.total):
            return
        if self.bar is None:
            self.bar = self._make_bar()
        self.drawn = now
        text = f"step {step}/{self.total}  {self.numbers}  {self.rate(step)}"
        self.bar.update(self.task, completed=step, text=text)
        self.bar.refresh()

    def log(self, step: int, loss: float, learning_rate: float) -> None:
        """Shows the newest loss."""
        self.numbers = f"loss {loss:.4g}  lr {learning_rate:.3g}"
        if self.shown and not self.console.is_terminal:
            self.console.print(f"step {step}/{self.total}  {self.numbers}  {self.rate(step)}")

    def validated(self, step: int, metrics: dict[str, float], improved: bool) -> None:
        """Prints a line (above the bar where there is one); metrics of single classes, "dice/liver", are left to the report."""
        if self.shown:
            numbers = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items() if "/" not in name)
            self.console.print(f"step {step}/{self.total}  validation: {numbers}{'  (best so far)' if improved else ''}")

    def say(self, line: str) -> None:
        """Prints a line (above the bar where there is one)."""
        if self.shown:
            self.console.print(line, soft_wrap=True)

    def close(self) -> None:
        """Leaves the terminal as it was."""
        if self.bar is not None:
            self.bar.refresh()
            self.bar.stop()
            self.bar = None
