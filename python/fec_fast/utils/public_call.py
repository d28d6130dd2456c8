"""Public functions that run a user's model: Ctrl-C ends them, is not lost, and leaves none of torch's modes behind."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

from .compat import active_modes, pop_modes
from .critical_section import interrupt_kept, put_back_by

_P = ParamSpec("_P")
_R = TypeVar("_R")


def interruptible(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Decorates a public function that runs a user's model.

    A Ctrl-C that Python or the model's code ignores is raised again at the next operator, or at the end. The ``with``
    statement does not leave its context if Ctrl-C arrives when it is about to; so torch's modes, which would watch
    every operator of the process from then on, and its gradient mode are put back here.

    Args:
        function: The function.

    Returns:
        The function, with these guarantees.
    """

    @functools.wraps(function)
    def called(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with_gradients, modes = torch.is_grad_enabled(), active_modes()

        def restore() -> None:
            pop_modes(modes)
            torch.set_grad_enabled(with_gradients)

        with interrupt_kept(), put_back_by(restore):
            return function(*args, **kwargs)

    return called
