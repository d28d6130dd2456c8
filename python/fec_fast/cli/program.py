"""The program as a whole: errors in one line, warnings in one line, exit codes, and the options before the command."""

from __future__ import annotations

import contextlib
import re
import sys
import warnings
from collections.abc import Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from ..utils.errors import FecError, TrainingInterrupted
from ..utils.machine import package_version
from ..utils.progress import be_quiet
from ..utils.random_state import restored_randomness, seed_all
from .output import one_call
from .streams import lasting_streams

EXIT_CODES = "Exit codes: 0 success; 1 a fault of the program; 2 wrong input; 130 interrupted by Ctrl-C."
# What typer raises for wrong options. Newer versions have their own copy of click, so its classes are found from here.
_USAGE_ERRORS = tuple(
    kind for kind in typer.BadParameter.__mro__ if issubclass(kind, Exception) and kind is not Exception
)
_PASSED_ON: tuple[type[BaseException], ...] = (*_USAGE_ERRORS, typer.Exit, typer.Abort)


class WholeHelp(TyperGroup):
    """Lists its commands with whole sentences: click cuts them off at the end of the line."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the list of the commands.

        Args:
            ctx: The context of click.
            formatter: Click's formatter, to which the list is written.
        """
        rows = [
            (name, " ".join((command.help or "").partition("\n\n")[0].split()))
            for name, command in self.commands.items()
            if not command.hidden
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


class OneLineErrors(WholeHelp):
    """Reports an error in one line. ``--debug`` shows the traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Runs a command.

        Args:
            ctx: The context of click.

        Returns:
            What the command returns.
        """
        with lasting_streams() as output:
            try:
                # The same command gives the same result, although training images are drawn and changed at random.
                with one_call(), _one_line_warnings(self, ctx), restored_randomness():
                    seed_all(0)
                    returned = super().invoke(ctx)
                output.flush()
                if not isinstance(output.failure, BrokenPipeError):  # a reader that has left wants no more
                    output.check()
                return returned
            except _PASSED_ON as error:
                usage: Any = error
                misplaced = getattr(error, "option_name", None)
                if any(misplaced in parameter.opts for parameter in self.params):
                    belongs = f"fec-fast {misplaced} {ctx.invoked_subcommand} ..."
                    usage.message += f"; it belongs before the command: {belongs}"
                raise
            except (Exception, KeyboardInterrupt) as error:
                if ctx.params.get("debug"):
                    raise
                print(_in_options(_message(error), self, ctx), file=sys.stderr, flush=True)
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


def _in_options(text: str, group: TyperGroup, ctx: Any) -> str:
    """Names arguments of Python functions by the options of the command: ``min_channels=`` is ``--min-channels=``."""
    command = group.commands.get(ctx.invoked_subcommand or "")
    commands = [command, *getattr(command, "commands", {}).values()]
    options = {
        option.removeprefix("--").replace("-", "_"): option
        for each in commands
        for parameter in getattr(each, "params", ())
        if not getattr(parameter, "is_flag", False)
        for option in parameter.opts
        if option.startswith("--")
    }
    if not options:
        return text
    # Not in "Budget(latency=...": that is Python.
    names = "|".join(map(re.escape, options))
    return re.sub(rf"(?<![\w.(-])({names})=", lambda match: f"{options[match[1]]}=", text)


@contextlib.contextmanager
def _one_line_warnings(group: TyperGroup, ctx: Any) -> Iterator[None]:
    """Prints warnings as one line each, without the line of the program that gave them, and none twice."""
    original, printed = warnings.formatwarning, set[str]()

    def in_one_line(message: Warning | str, *args: Any, **options: Any) -> str:
        line = "warning: " + _in_options(" ".join(str(message).split()), group, ctx) + "\n"
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
