"""The program as a whole: errors in one line, warnings in one line, exit codes, and the options before the command."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..utils.errors import FecError, TrainingInterrupted
from ..utils.machine import package_version
from ..utils.progress import be_quiet
from .output import one_call

EXIT_CODES = "Exit codes: 0 success; 1 a fault of the program; 2 wrong input; 130 interrupted by Ctrl-C."
# What typer raises for wrong options. Newer versions have their own copy of click, so its classes are found from here.
_USAGE_ERRORS = tuple(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind is not Exception
)
_PASSED_ON: tuple[type[BaseException], ...] = (*_USAGE_ERRORS, typer.Exit, typer.Abort, BrokenPipeError)


class OneLineErrors(TyperGroup):
    """Reports an error in one line. ``--debug`` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command.

        Args:
            ctx: The context of click.

        Returns:
            What the command returns.
        """
        try:
            with one_call(), _one_line_warnings():
                return super().invoke(ctx)
        except _PASSED_ON:
            raise
        except (Exception, KeyboardInterrupt) as error:
            if ctx.params.get("debug"):
                raise
            typer.echo(_message(error), err=True)
            raise typer.Exit(_exit_code(error)) from error


@contextlib.contextmanager
def if_interrupted(advice: str, *, training: bool = False) -> Iterator[None]:
    """Says after Ctrl-C what of a long command is kept, and how to go on.

    Args:
        advice: That, as the end of a sentence.
        training: Whether the message of a training that was interrupted, which names its state, is shown instead.

    Yields:
        Nothing.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        if training and isinstance(error, TrainingInterrupted):
            raise
        raise KeyboardInterrupt(advice) from error


def _message(error: BaseException) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, TrainingInterrupted):
        return text
    if isinstance(error, KeyboardInterrupt):
        return f"interrupted; {text or 'files are written whole or not at all: run the command again'}"
    if isinstance(error, FecError | OSError):
        return f"error: {text}"
    kind = type(error).__name__
    return f"error: {kind}: {text} (a fault of the program: fec-fast --debug COMMAND ... shows where; please report it)"


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return 2 if isinstance(error, FecError | OSError) else 1


@contextlib.contextmanager
def _one_line_warnings() -> Iterator[None]:
    """Prints warnings as one line each, without the line of the program that gave them, and none twice."""
    original, printed = warnings.formatwarning, set[str]()

    def in_one_line(message: Warning | str, *args: Any, **options: Any) -> str:
        line = "warning: " + " ".join(str(message).split()) + "\n"
        if line in printed:
            return ""
        printed.add(line)
        return line

    warnings.formatwarning = in_one_line
    try:
        yield
    finally:
        warnings.formatwarning = original


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"fec-fast {package_version()}")
        raise typer.Exit()


def before_the_command(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Prints the version and exits.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Prints errors and warnings only.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Shows the traceback of an error.")] = False,
) -> None:
    """Channel-similarity entropy pruning of convolutional networks."""
    if quiet:
        be_quiet()
