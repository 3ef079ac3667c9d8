"""Peak memory of a model, measured in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import torch

from vsuite.core.bench.subject import Conditions, Subject
from vsuite.core.errors import InputError


def peak_memory(subject: Subject, conditions: Conditions) -> int:
    """Bytes that building the model and running it takes at most: weights, input and all that is in between.

    On the CPU it is a fresh process's peak less what it held before the model was built; on CUDA the most that torch had
    allocated, without the context of the driver.

    Raises:
        InputError: where the process fails, mostly because it was killed for want of memory.
    """
    task = json.dumps({"subject": dataclasses.asdict(subject), "conditions": dataclasses.asdict(conditions)})
    # -P: a stray torch.py in the current folder must not be imported
    command = [sys.executable, "-P", "-c", "from vsuite.core.bench.memory import main; main()"]
    done = subprocess.run(command, input=task, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"{subject.label}: measuring its memory in a process of its own failed with {done.returncode}: {reason}")
    return int(done.stdout.split()[-1])


def main() -> None:
    """The work of the fresh process: reads the task from standard input, prints the peak in bytes."""
    task = json.loads(sys.stdin.read())
    subject = Subject(**task["subject"])
    conditions = Conditions(**{**task["conditions"], "size": tuple(task["conditions"]["size"])})
    if conditions.device != "cpu":
        _run(subject, conditions)
        print(torch.cuda.max_memory_allocated(conditions.device))
        return
    __import__(subject.target.split(":")[0])  # the code's own memory is not the model's
    start, _ = process_memory()
    _run(subject, conditions)
    print(max(0, process_memory()[1] - start))


def _run(subject: Subject, conditions: Conditions) -> None:
    model = subject.build(precision=conditions.precision).to(conditions.device)
    inputs = conditions.inputs()
    with conditions.applied():
        model(inputs)
        if subject.form == "compiled":
            _forget_peak(conditions.device)  # the compiler's own
        model(inputs)


def _forget_peak(device: str) -> None:
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def process_memory() -> tuple[int, int]:
    """Bytes that this process holds now, and its peak.

    Linux hands `ru_maxrss` of the parent on to a new process, so the peak is read from where it starts anew. Systems
    without /proc offer nothing but the peak.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return peak, peak
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) * 1024, int(fields["VmHWM"].split()[0]) * 1024
