"""Public functions that call foreign code: Ctrl-C ends them, is not lost, and leaves none of torch's modes behind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from .compat import active_modes, pop_modes
from .critical_section import InterruptKeeper, OpenedContexts

_P = ParamSpec("_P")
_R = TypeVar("_R")


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
            raise
        finally:
            # CPython looks for Ctrl-C at calls and jumps: there is none before the first line of this inner block.
            try:
                restore()
            except BaseException:
                restore()
                raise

    return called
