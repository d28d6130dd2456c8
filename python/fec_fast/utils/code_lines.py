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
        file = frame.f_code.co_filename
        if found is None and not file.startswith((_OWN, _TORCH, "<")):
            found = f"{'/'.join(Path(file).parts[-2:])}:{frame.f_lineno}"
        frame = frame.f_back
    return None if frame is None else found
