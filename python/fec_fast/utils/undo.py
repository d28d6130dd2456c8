"""Undo: changes of a model that are made together or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

from .critical_section import interrupts_deferred, surely_closed


class UndoLog:
    """What puts a model back as it was, step by step.

    The reversal of a step is stored before the step itself. So an exception in the middle of a step undoes that step
    too, and a reversal may find that there is nothing to reverse.
    """

    def __init__(self) -> None:
        """Makes an empty log."""
        self._reversals: list[tuple[str, Callable[[], None]]] = []

    def tensor(self, tensor: Tensor) -> None:
        """Stores which memory a tensor and its gradient have, before they get other memory.

        Args:
            tensor: A parameter or buffer.
        """
        data, grad = tensor.data, tensor.grad
        self._reversals.append(("a tensor", lambda: set_data(tensor, data, grad)))

    def values(self, tensor: Tensor) -> None:
        """Copies the values of a tensor, before others are written to its memory.

        Args:
            tensor: A parameter or buffer.
        """
        data, values = tensor.data, tensor.detach().clone()

        def write_back() -> None:
            with torch.no_grad():
                data.copy_(values)

        self._reversals.append(("a tensor", write_back))

    def attribute(self, module: nn.Module, attribute: str) -> None:
        """Stores an attribute of a module, before it is set.

        Args:
            module: The module.
            attribute: Its name; the module has it.
        """
        value, own, before = getattr(module, attribute), vars(module), dict(vars(module))

        def set_back() -> None:
            # The attribute may be a property, or its class may refuse that it is set, or set others with it.
            refused: Exception | None = None
            try:
                if getattr(module, attribute) is not value:
                    setattr(module, attribute, value)
            except Exception as error:
                refused = error
            for name in own.keys() - before.keys():
                del own[name]
            own.update(before)
            if refused is not None and getattr(module, attribute) is not value and getattr(module, attribute) != value:
                raise refused

        self._reversals.append((f"{attribute} of {type(module).__name__}", set_back))

    def entry(self, mapping: MutableMapping[str, Any], key: str) -> None:
        """Stores an entry of a mapping, before it is replaced.

        Args:
            mapping: The mapping.
            key: Its key; there is such an entry.
        """
        value = mapping[key]
        self._reversals.append((key, lambda: mapping.__setitem__(key, value)))

    def action(self, what: str, reverse: Callable[[], None]) -> None:
        """Stores how something is reversed, before it is done.

        Args:
            what: What it is, for the note of an error.
            reverse: Reverses it; called also if it was not done.
        """
        self._reversals.append((what, reverse))

    def undo(self, error: BaseException) -> None:
        """Reverses all steps, the last one first. A reversal that fails does not keep the others from being made.

        Args:
            error: Why; what could not be put back is noted in it.
        """
        while self._reversals:
            what, reverse = self._reversals[-1]
            try:
                reverse()
            except Exception as refused:
                error.add_note(f"{what} could not be put back: {type(refused).__name__}: {refused}")
            self._reversals.pop()


@surely_closed
def undone_upon_error() -> Iterator[UndoLog]:
    """Undoes changes if anything is raised in the block, Ctrl-C included. For work that may take long.

    Yields:
        The log, in which each change is announced before it is made.
    """
    log = UndoLog()
    try:
        yield log
    except BaseException as error:
        with interrupts_deferred():
            log.undo(error)
        raise


@surely_closed
def all_or_nothing() -> Iterator[UndoLog]:
    """Makes changes together or not at all, whatever is raised. For work of milliseconds.

    Ctrl-C is deferred meanwhile. If it was pressed before the last change, all are undone before it is raised.

    Yields:
        The log, in which each change is announced before it is made.
    """
    with interrupts_deferred() as pressed, undone_upon_error() as log:
        yield log
        if pressed():
            raise KeyboardInterrupt


def set_data(tensor: Tensor, data: Tensor, grad: Tensor | None) -> None:
    """Gives a tensor other memory and another gradient.

    Args:
        tensor: A parameter or buffer; stays the same object.
        data: Of any shape and dtype.
        grad: Of the same shape and dtype, or ``None``.
    """
    # Torch compares the shapes when a gradient is set, so the data must be there first. The old gradient is removed
    # before that, so that data and gradient never differ in shape.
    tensor.grad = None
    tensor.data = data
    tensor.grad = grad
