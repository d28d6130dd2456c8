"""Warnings that point at the user's line, however deep in the package they arise."""

from __future__ import annotations

import inspect
import warnings

from .errors import FecWarning
from .installed_files import is_installed


def warn_user(message: str) -> None:
    """Gives a :class:`FecWarning` of the user's line that led here.

    The line is found by walking, because the number of frames between changes with every decorator and context, and
    with whether the user or another function of the package has called.

    Args:
        message: What is likely not wanted, and the remedy.
    """
    frame = inspect.currentframe()
    assert frame is not None  # CPython, which torch needs, has frames
    # Of the program, and of a library's thread, there is no line of the user's: it is the outermost.
    while is_installed(frame.f_code.co_filename) and frame.f_back is not None:
        frame = frame.f_back
    warnings.warn_explicit(
        message,
        FecWarning,
        frame.f_code.co_filename,
        frame.f_lineno,
        frame.f_globals.get("__name__"),
        frame.f_globals.setdefault("__warningregistry__", {}),
    )
