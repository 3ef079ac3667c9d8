"""Ways to give a command, as a user would."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest


class Finished(NamedTuple):
    """What a command left: its exit code, and what it wrote."""

    code: int
    out: str
    err: str

    def refused(self, *parts: str) -> str:
        """Checks that this is an error as it should be, and that its one line has these parts; returns the line."""
        lines = [line for line in self.err.splitlines() if line.startswith("error: ")]
        assert (self.code, len(lines)) == (2, 1), (self.code, self.err)
        assert "Traceback" not in self.err + self.out
        missing = [part for part in parts if part not in lines[0]]
        assert not missing, (missing, lines[0])
        return lines[0]


@pytest.fixture(scope="session")
def invoke() -> Callable[..., Finished]:
    """Runs `vsuite-medical` with arguments in this process, as its console script does."""
    from vsuite.core.cli.app import run
    from vsuite.medical.cli import app

    def execute(*arguments: object) -> Finished:
        out, err, formatting = io.StringIO(), io.StringIO(), warnings.formatwarning
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), warnings.catch_warnings(), pytest.raises(SystemExit) as left:
            run(app, [str(argument) for argument in arguments])
        warnings.formatwarning = formatting
        return Finished(int(left.value.code or 0), out.getvalue(), err.getvalue())

    return execute


@pytest.fixture(scope="session")
def start() -> Callable[..., subprocess.Popen[str]]:
    """Starts `vsuite-medical` with arguments, as a process of its own; `program` goes before them in its place."""

    def begin(*arguments: object, program: tuple[str, ...] = (), **options: Any) -> subprocess.Popen[str]:
        command = [*(program or (str(Path(sys.executable).with_name("vsuite-medical")),)), *map(str, arguments)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, **options)

    return begin


@pytest.fixture(scope="session")
def shell(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Finished]:
    """Runs `vsuite-medical` as a process of its own, to its end."""

    def execute(*arguments: object, **options: Any) -> Finished:
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=500)
        return Finished(process.returncode, out, err)

    return execute
