"""How every command line of vsuite starts and ends: common options, one line an error, exit codes.

Exit codes: 0 all went well; 1 a bug, with a traceback, or a problem that a check found; 2 the user gave something wrong; 130 interrupted.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer

from vsuite.core.errors import InputError

# Typer brings a click of its own from some version on; its base class of usage errors is found through a public one.
ClickError: type[Exception] = next(base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException")


def new_app(distribution: str, summary: str) -> typer.Typer:
    """An application without commands yet, with `--version`, `--debug` and `-h`.

    Args:
        distribution: whose version `--version` prints, such as "vsuite-medical".
        summary: what `--help` says first.
    """
    app = typer.Typer(
        help=summary,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback(invoke_without_command=True)
    def start(
        context: typer.Context,
        version: Annotated[bool, typer.Option("--version", help="Print the version and leave.")] = False,
        debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error; may stand anywhere.")] = False,
    ) -> None:
        if version:
            typer.echo(f"{distribution} {importlib.metadata.version(distribution)}")
            raise typer.Exit
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return app


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command line and leaves the process with its exit code.

    Args:
        app: see `new_app`.
        arguments: None takes those of the process.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in given
    if not debug:
        warnings.formatwarning = _short_warning  # type: ignore[assignment]
        for category in (DeprecationWarning, FutureWarning, PendingDeprecationWarning):  # of libraries; nothing a user can act on
            warnings.simplefilter("ignore", category)
    try:
        code = app([argument for argument in given if argument != "--debug"], standalone_mode=False)
        sys.stdout.flush()
    except (InputError, ClickError) as error:
        if debug:
            traceback.print_exc()
        _fail(_message(error), 2)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted", 130)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    if code == 130:  # newer versions of typer turn the interrupt into this
        _fail("interrupted", 130)
    sys.exit(code if isinstance(code, int) else 0)


def _message(error: Any) -> str:
    """What went wrong, without the list of all usage that click would print."""
    near = getattr(error, "possibilities", None)
    if near:
        return f"{error.message}; did you mean {' or '.join(near)}?"
    return error.format_message().replace("Value error, ", "") if hasattr(error, "format_message") else str(error)


def _fail(message: str, code: int) -> NoReturn:
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _short_warning(message: Warning | str, *_: Any) -> str:
    return f"warning: {' '.join(str(message).split())}\n"
