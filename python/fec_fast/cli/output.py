"""What commands print: text for people, or JSON for programs."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..utils.errors import InputError
from ..utils.files import write_text
from ..utils.progress import be_quiet, is_quiet, quiet_until_end
from ..utils.text import folded, lines_within


@contextlib.contextmanager
def one_call() -> Iterator[None]:
    """One call of the program: what it sets about its output holds until the end of the context.

    Yields:
        Nothing.
    """
    with lines_within(_columns()), quiet_until_end():
        yield


def _columns() -> int | None:
    """The width of the terminal, or what COLUMNS says; ``None`` for a pipe or a file, in which lines are left whole."""
    given = os.environ.get("COLUMNS", "")
    if given.isdecimal() and int(given) > 0:
        return max(20, int(given))
    return max(20, shutil.get_terminal_size().columns) if sys.stdout.isatty() else None


def say(text: object) -> None:
    """Prints a text for people on the standard output, in lines no wider than the terminal.

    Args:
        text: Anything whose ``str`` is the text.
    """
    if not is_quiet():
        typer.echo(folded(str(text)))


def _check_json(path: Any) -> Any:
    """Checks the file of ``--json`` before the work; ``-`` leaves the standard output to the JSON."""
    if path is not None and str(path) == "-":
        be_quiet()
    elif path is not None and not Path(path).absolute().parent.is_dir():
        raise InputError(f"--json {path}: there is no folder {Path(path).absolute().parent}")
    return path


Json = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="FILE",
        allow_dash=True,
        callback=_check_json,
        help="Also writes the result to this file; - writes it to the standard output, and nothing else.",
    ),
]


def write_json(path: Path | None, text: str) -> None:
    """Writes a result as JSON.

    Args:
        path: The value of ``--json``.
        text: The JSON.
    """
    if path is None:
        return
    if str(path) == "-":
        typer.echo(text.rstrip("\n"))
    else:
        write_text(path, text)
