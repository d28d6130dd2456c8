"""User files: functions of a user's own Python file, by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.errors import InputError, nearest


def load_function(purpose: str, file: Path, name: str) -> Callable[..., Any]:
    """Executes a Python file and returns a function of it.

    Args:
        purpose: What asks for the function, for messages, such as ``"model 'path/to/file.py:factory'"``.
        file: The Python file.
        name: The function's name.

    Returns:
        The function.

    Raises:
        InputError: The file or the function does not exist, or executing the file raises.
    """
    if file.suffix != ".py":
        raise InputError(
            f"{purpose}: {str(file)!r} is neither 'torchvision', nor 'zoo', nor a Python file ending in .py"
        )
    if not file.is_file():
        raise InputError(f"{purpose}: there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # a file that ends in .py always has a loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{purpose}: running {file} raised {type(error).__name__}: {error}") from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{purpose}: {file} has no function {name!r}; {nearest(name, functions)}")
    return function
