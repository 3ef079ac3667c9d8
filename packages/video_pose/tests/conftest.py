"""What the tests of several files use."""

from __future__ import annotations

from collections.abc import Callable

import pytest


@pytest.fixture
def vsuite(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs `vsuite-pose` with arguments in this process: exit code, what it printed, and its errors."""
    from vsuite.core.cli.app import run
    from vsuite.video_pose.cli import app

    def execute(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as left:
            run(app, [str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(left.value.code or 0), captured.out, captured.err

    return execute
