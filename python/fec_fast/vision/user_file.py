"""Functions of a user's own Python file, by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..utils.errors import InputError, nearest


def from_file(what: str, path: Path, attribute: str) -> Callable[..., Any]:
    """Gets a function out of a Python file, which is executed for that.

    Args:
        what: What is wanted, for messages, such as ``"model 'path/to/file.py:factory'"``.
        path: The file.
        attribute: The function's name.

    Returns:
        The function.

    Raises:
        InputError: The file or the function does not exist, or running the file raises.
    """
    if path.suffix != ".py":
        raise InputError(f"{what}: {str(path)!r} is neither 'torchvision', nor 'zoo', nor a Python file ending in .py")
    if not path.is_file():
        raise InputError(f"{what}: there is no file {path}")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None  # a .py suffix always has a loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"{what}: running {path} raised {type(error).__name__}: {error}") from error
    factory: Callable[..., Any] | None = getattr(module, attribute, None)
    if not callable(factory):
        callables = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise InputError(f"{what}: {path} has no function {attribute!r}; {nearest(attribute, callables)}")
    return factory
