"""The running module: whose code an operator is called by, and how often before: its place in the model's code."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping

from torch import nn
from torch.nn.modules import module as hooks


class RunningModule:
    """Follows the calls of modules on one thread."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        """Starts outside of any call.

        Args:
            modules: The modules of the model by name.
        """
        self._names = {id(module): name for name, module in modules.items()}
        # The modules whose forward is being run, by name, the innermost last; and which operators each has called.
        self._stack = [("", Counter[str]())]

    @property
    def name(self) -> str:
        """The innermost module whose ``forward`` is being run; the model itself is ``""``."""
        return self._stack[-1][0]

    def count(self, operator: str) -> int:
        """Counts a call of an operator.

        Args:
            operator: Its name.

        Returns:
            How often the running module has called it before, in this call of its ``forward``.
        """
        counter = self._stack[-1][1]
        counter[operator] += 1
        return counter[operator] - 1

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Watches the calls on this thread."""
        thread = threading.get_ident()

        def enter(module: nn.Module, _: object) -> None:
            if threading.get_ident() == thread:
                self._stack.append((self._names.get(id(module), self.name), Counter()))

        def leave(module: nn.Module, _inputs: object, _outputs: object) -> None:
            if threading.get_ident() == thread:
                self._stack.pop()

        handles = [
            hooks.register_module_forward_pre_hook(enter),
            hooks.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._stack = [("", Counter())]
