"""Every public function, method and constructor of the package, found from its public names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import fec_fast


def _methods(name: str, cls: type) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield name, cls
    for attribute in dir(cls):
        owner = next(base for base in cls.__mro__ if attribute in vars(base))
        if not attribute.startswith("_") and owner.__module__.startswith("fec_fast"):
            value = getattr(cls, attribute)
            if callable(value):
                yield f"{name}.{attribute}", value


def _found() -> Iterator[tuple[str, Callable[..., Any]]]:
    for name in sorted(set(dir(fec_fast)) - {"__version__"}):
        value = getattr(fec_fast, name)
        members = {name: value}
        if isinstance(value, ModuleType):
            members = {
                f"{name}.{own}": member
                for own, member in vars(value).items()
                if not own.startswith("_") and getattr(member, "__module__", None) == value.__name__
            }
        for path, member in members.items():
            if inspect.isclass(member):
                yield from _methods(path, member)
            elif callable(member):
                yield path, member


def public_callables() -> dict[str, list[str]]:
    """Every public callable that takes arguments: its name and the names of its parameters, without ``self``."""
    callables = {}
    for name, value in _found():
        if inspect.isclass(value) and issubclass(value, BaseException):
            continue  # raised by the package, with its own message
        parameters = list(inspect.signature(value).parameters)
        parameters = [parameter for parameter in parameters if parameter != "self"]
        if parameters:
            callables[name] = parameters
    return callables
