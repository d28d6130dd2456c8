"""Parameters that a model's own code writes to in place: their values are kept before, and written back after a run."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn

from ..utils.compat import operator_arguments, storage_id, without_dispatch_modes
from ..utils.forward import tensors_in
from ..utils.model_index import ModelIndex


class ParameterGuard:
    """Keeps what a run writes over. A dispatch mode asks it before every operator.

    Attributes:
        written: The parameters that were written to, by name, with the values from before.
    """

    def __init__(self, index: ModelIndex) -> None:
        """Notes where the parameters lie in memory.

        Args:
            index: The index of the model.
        """
        self.written: dict[str, Tensor] = {}
        self._tensors = index.tensors
        self._names = {
            storage_id(tensor): name for name, tensor in index.tensors.items() if isinstance(tensor, nn.Parameter)
        }

    def before(self, operator: Any, args: Any, kwargs: Any) -> list[Tensor]:
        """Keeps the values of parameters that an operator is about to write to, through whichever view.

        Args:
            operator: The ATen operator.
            args: Its positional arguments.
            kwargs: Its keyword arguments.

        Returns:
            The tensors that it writes to.
        """
        written = written_tensors(operator, args, kwargs)
        for tensor in written:
            name = self._names.get(storage_id(tensor))
            if name is not None and name not in self.written:
                with without_dispatch_modes():
                    self.written[name] = self._tensors[name].detach().clone()
        return written

    def restore(self) -> None:
        """Writes the values back."""
        with torch.no_grad():
            for name, values in self.written.items():
                self._tensors[name].copy_(values)


def written_tensors(operator: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The tensors that a call of an operator writes to in place.

    Args:
        operator: The ATen operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
    """
    return [
        tensor
        for position, name in written_arguments(operator)
        for tensor in tensors_in(args[position] if position < len(args) else kwargs.get(name))
    ]


@functools.cache
def written_arguments(operator: Any) -> tuple[tuple[int, str], ...]:
    """The positions and names of the arguments that an operator writes to in place."""
    return tuple(
        (position, declared.name)
        for position, declared in enumerate(operator_arguments(operator))
        if declared.alias_info is not None and declared.alias_info.is_write
    )
