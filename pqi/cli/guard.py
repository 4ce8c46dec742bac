"""From what goes wrong in a command to one clear message and an honest exit status.

0: it did what it says. 1: it failed, and the message says why. 2: wrong usage. 130: interrupted. 3: of ``pqi audit``
alone: the audit was made, and something needs attention.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import typer

from pqi.cli.screen import complaint, err

FAILED, INTERRUPTED = 1, 130


class CliError(Exception):
    """A command cannot do what was asked; the message says what was wrong and what to do."""


def guarded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with its errors told and turned into exit statuses. ``--debug`` lets the traceback through."""

    @functools.wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            with _warnings_on_screen():
                command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            err().print("Interrupted; nothing was left running.", style="warn")
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            _close_stdout()
            raise typer.Exit(FAILED) from None
        except Exception as error:
            if kwargs.get("debug"):
                raise
            complaint(_message(error))
            raise typer.Exit(FAILED) from None

    return run


def _message(error: Exception) -> str:
    """Our own errors and the system's speak for themselves; anything else is said to be unexpected."""
    ours = type(error).__module__.partition(".")[0] in ("pqi", "protocols")
    if isinstance(error, OSError) and not ours:
        place = f"{error.filename}: " if error.filename is not None else ""
        return f"{place}{error.strerror or error}"
    if ours:
        return str(error)
    return f"unexpected {type(error).__name__}: {error}\nRun the command again with --debug to see where."


@contextmanager
def _warnings_on_screen() -> Iterator[None]:
    """Warnings as one line on the error stream instead of Python's two with a source line."""
    from pqi.graph.errors import CalibrationWarning, SaturationWarning

    def show(message: Warning | str, category: type[Warning], *_place: Any, **_more: Any) -> None:
        if issubclass(category, UserWarning):
            complaint(str(message), "warning")

    with warnings.catch_warnings():
        for category in (CalibrationWarning, SaturationWarning):
            warnings.simplefilter("always", category)
        warnings.showwarning = show
        yield


def _close_stdout() -> None:
    """Whoever read our output has gone: keep the interpreter from complaining about it at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
