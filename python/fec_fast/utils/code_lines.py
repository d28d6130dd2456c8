"""Lines of a model's own code: where in it an operator was called, for messages."""

from __future__ import annotations

import dis
import inspect
from pathlib import Path
from types import CodeType

import torch

from .installed_files import is_installed

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


def line_of_own_fault(error: BaseException) -> str | None:
    """The line of this library that an exception came from, where it is not the model's or torch's.

    Args:
        error: The exception that running the model has raised, caught where the model was called.

    Returns:
        The line, such as ``"graph/labels.py:92"``; ``None`` where the library handed on the call of an operator, which
        failed, or refused something in a documented way.
    """
    traceback = None if error.__traceback__ is None else error.__traceback__.tb_next
    innermost = None
    while traceback is not None:
        file = traceback.tb_frame.f_code.co_filename
        if file.startswith(_OWN) or not (file.startswith("<") or is_installed(file)):
            innermost = traceback
        traceback = traceback.tb_next
    if innermost is None or type(error).__module__.startswith(f"{__package__.partition('.')[0]}."):
        return None
    code, line = innermost.tb_frame.f_code, innermost.tb_lineno
    # The networks of this library are models too. A call with all of its arguments (*args) is one that is handed on.
    hands_on = dis.opname[code.co_code[innermost.tb_lasti]] == "CALL_FUNCTION_EX"
    if hands_on or not code.co_filename.startswith(_OWN) or code.co_filename.startswith(f"{_OWN}vision/"):
        return None
    return "/".join(Path(code.co_filename).parts[-2:]) + f":{line}"


def _shown(file: str, line: int) -> str | None:
    return None if file.startswith((_OWN, _TORCH, "<")) else f"{'/'.join(Path(file).parts[-2:])}:{line}"
