"""Lines of a model's own code: where in it an operator was called, for messages."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import CodeType

import torch

_OWN = f"{Path(__file__).parents[1]}/"
_TORCH = f"{Path(torch.__file__).parent}/"


def line_of_model_code(runner: CodeType) -> str | None:
    """The line of a model's own code that is being run.

    Args:
        runner: The code of the function that called the model: what lies outside it on the stack is not the model's.

    Returns:
        The innermost line outside torch and this library, such as ``"models/resnet.py:92"``; ``None`` where there is
        none: the model consists of layers of torch alone, or is not being run.
    """
    found = None
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not runner:
        found = found or _shown(frame.f_code.co_filename, frame.f_lineno)
        frame = frame.f_back
    return None if frame is None else found


def line_that_raised(error: BaseException) -> str | None:
    """The line of a model's own code that an exception came from.

    Args:
        error: The exception that running the model has raised.

    Returns:
        The innermost line outside torch and this library, as :func:`line_of_model_code` gives it.
    """
    found, traceback = None, error.__traceback__
    while traceback is not None:
        found = _shown(traceback.tb_frame.f_code.co_filename, traceback.tb_lineno) or found
        traceback = traceback.tb_next
    return found


def _shown(file: str, line: int) -> str | None:
    return None if file.startswith((_OWN, _TORCH, "<")) else f"{'/'.join(Path(file).parts[-2:])}:{line}"
