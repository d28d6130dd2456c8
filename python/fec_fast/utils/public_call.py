"""Public functions: Ctrl-C ends them, is not lost, leaves none of torch's modes behind; wrong names get a hint."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ParamSpec, TypeVar

import torch

from .compat import active_modes, pop_modes
from .critical_section import InterruptKeeper, OpenedContexts
from .errors import ArgumentError, nearest

_P = ParamSpec("_P")
_R = TypeVar("_R")
_C = TypeVar("_C")


def check_names(function: Callable[..., Any], arguments: Iterable[str]) -> None:
    """Checks that a function has all arguments that a caller has named. Python's own error hints at no name.

    Args:
        function: The function.
        arguments: The names.

    Raises:
        ArgumentError: It has no argument of a name; the nearest are named.
    """
    parameters = inspect.signature(function).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    known = [parameter.name for parameter in parameters if parameter.name not in ("self", "cls")]
    for name in arguments:
        if name not in known:
            called = function.__qualname__.removesuffix(".__init__")
            raise ArgumentError(f"{called}: there is no argument {name!r}; {nearest(name, known)}") from None


def names_checked(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a public function that takes numbers and texts alone: a wrong name gets a hint at the right one.

    Args:
        function: The function.

    Returns:
        The function, which raises an :class:`ArgumentError` for a name that it does not have.
    """

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return function(*args, **kwargs)
        except TypeError:  # only now: reading a signature takes longer than many a call
            check_names(function, kwargs)
            raise

    return called


def constructor_checked(kind: type[_C]) -> type[_C]:
    """Decorates a public class: its constructor does what :func:`names_checked` says.

    Args:
        kind: The class.

    Returns:
        The same class.
    """
    setattr(kind, "__init__", names_checked(kind.__init__))  # noqa: B010 (mypy refuses the assignment)
    return kind


def interruptible(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a public function that runs a user's model, or reads a file by functions of torch.

    A Ctrl-C that Python or the foreign code ignores is raised again at the next operator, or at the end. A ``with``
    statement does not leave its context if Ctrl-C arrives when it is about to. So what it was to put back is put back
    here: the contexts of this package, torch's modes (which would watch every operator of the process from then on),
    and whether gradients are computed.

    Args:
        function: The function.

    Returns:
        The function, with these guarantees.
    """

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with_gradients, modes, contexts = torch.is_grad_enabled(), active_modes(), OpenedContexts()
        keeper = InterruptKeeper()

        def restore() -> None:
            contexts.close()
            pop_modes(modes)
            torch.set_grad_enabled(with_gradients)
            keeper.remove()

        try:
            keeper.install()
            result = function(*args, **kwargs)
            keeper.raise_if_lost()
            return result
        except Exception as error:
            if keeper.pressed:  # a context that was not left let another fail
                raise KeyboardInterrupt from error
            if isinstance(error, TypeError):
                check_names(function, kwargs)
            raise
        finally:
            # CPython looks for Ctrl-C at calls and jumps: there is none before the first line of this inner block.
            try:
                restore()
            except BaseException:
                restore()
                raise

    return called
