"""The command `vsuite`, and what the commands of all packages have in common."""

from __future__ import annotations


def main() -> None:
    """Entry point of the command `vsuite`."""
    from vsuite.core.cli.app import run
    from vsuite.core.cli.commands import app

    run(app)
