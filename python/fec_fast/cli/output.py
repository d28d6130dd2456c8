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

from ..utils.arguments import check_file_to_write
from ..utils.errors import InputError
from ..utils.files import write_text
from ..utils.progress import be_quiet, is_quiet, quiet_until_end
from ..utils.text import folded, lines_within
from .streams import LastingStream


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
        print(folded(str(text)), flush=True)  # not by click, which writes past the stream where that is ASCII


def _check_json(path: Any) -> Any:
    """Checks the file of ``--json`` before the work; ``-`` leaves the standard output to the JSON."""
    if path is not None and str(path) == "-":
        be_quiet()
    elif path is not None:
        check_new_file("--json", Path(path))
    return path


def check_new_file(option: str, file: Path) -> None:
    """Checks before the work that an option names a file that can be written.

    Args:
        option: The option.
        file: Its value.

    Raises:
        InputError: It is a folder, a device or a pipe, or there is no folder for it.
        PermissionError: Files cannot be made in its folder.
    """
    if not file.absolute().parent.is_dir():
        raise InputError(f"{option} {file}: there is no folder {file.absolute().parent}")
    check_file_to_write(option, file)


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

    Raises:
        OSError: It cannot be written, to the standard output either: whoever reads it there has nothing.
    """
    if path is None:
        return
    if str(path) == "-":
        print(text.rstrip("\n"), flush=True)
        if isinstance(sys.stdout, LastingStream):
            sys.stdout.check()
    else:
        write_text(path, text)
