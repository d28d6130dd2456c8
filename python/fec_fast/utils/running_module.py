"""The running module: whose code an operator is called by, and how often before: its place in the model's code."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from torch.nn.modules import module as hooks
from torch.utils.hooks import RemovableHandle

from .critical_section import put_back_by, surely_closed


def modules_that_raised(error: BaseException, modules: Mapping[str, nn.Module]) -> list[str]:
    """The modules in whose methods an exception was raised.

    Args:
        error: The exception.
        modules: The modules of the model by name.

    Returns:
        Their names, the innermost first.
    """
    names, found = {id(module): name for name, module in modules.items()}, dict[str, None]()
    traceback = error.__traceback__
    while traceback is not None:
        name = names.get(id(traceback.tb_frame.f_locals.get("self")))
        if name is not None:
            found.pop(name, None)
            found[name] = None
        traceback = traceback.tb_next
    return [*reversed(found)]


class RunningModule:
    """Follows the calls of modules on one thread.

    Attributes:
        name: The innermost module whose ``forward`` is being run; the model itself is ``""``.
        inputs: The positional arguments that it was called with.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        """Starts outside of any call.

        Args:
            modules: The modules of the model by name.
        """
        self._names = {id(module): name for name, module in modules.items()}
        self.name, self.inputs = "", tuple[Any, ...]()
        self._calls: dict[Any, int] = {}  # how often it has called each operator
        # The same three of the modules outside, the innermost last.
        self._stack: list[tuple[str, tuple[Any, ...], dict[Any, int]]] = []

    def count(self, operator: Any) -> int:
        """Counts a call of an operator.

        Args:
            operator: The operator.

        Returns:
            How often the running module has called it before, in this call of its ``forward``.
        """
        number = self._calls.get(operator, 0)
        self._calls[operator] = number + 1
        return number

    @surely_closed
    def watching(self) -> Iterator[None]:
        """Watches the calls on this thread."""
        thread = threading.get_ident()

        def enter(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if threading.get_ident() == thread:
                self._stack.append((self.name, self.inputs, self._calls))
                self.name, self.inputs, self._calls = self._names.get(id(module), self.name), inputs, {}

        def leave(module: nn.Module, _inputs: object, _outputs: object) -> None:
            if threading.get_ident() == thread:
                self.name, self.inputs, self._calls = self._stack.pop()

        handles: list[RemovableHandle] = []

        def restore() -> None:
            for handle in handles:
                handle.remove()
            self.name, self.inputs, self._calls, self._stack = "", (), {}, []

        with put_back_by(restore):
            handles.append(hooks.register_module_forward_pre_hook(enter))
            handles.append(hooks.register_module_forward_hook(leave, always_call=True))
            yield
