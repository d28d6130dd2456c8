"""One call of an ATen operator: its arguments, its result and the tensors among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from ..utils.compat import operator_arguments, operator_name


class OperatorCall:
    """A call that has been made.

    Attributes:
        operator: The ATen operator, a ``torch._ops.OpOverload``.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        result: What it returned.
        operands: The tensors among the arguments, in order.
        results: The tensors that it returned, in order.
        number: Its position among the operators of the run.
        layer: The module in whose code it ran.
        repetition: How often that module has called the operator before, in the same call of its ``forward``.
        module_inputs: The positional arguments that the module was called with.
    """

    __slots__ = (
        "args",
        "kwargs",
        "layer",
        "module_inputs",
        "number",
        "operands",
        "operator",
        "repetition",
        "result",
        "results",
    )

    def __init__(
        self,
        operator: Any,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        result: Any,
        number: int = 0,
        layer: str = "",
        repetition: int = 0,
        module_inputs: tuple[Any, ...] = (),
    ) -> None:
        """Finds the tensors.

        Args:
            operator: The ATen operator.
            args: Its positional arguments.
            kwargs: Its keyword arguments.
            result: What it returned.
            number: Its position among the operators of the run.
            layer: The module in whose code it ran; the model itself is ``""``.
            repetition: How often that module has called it before.
            module_inputs: What the module was called with.
        """
        self.operator, self.args, self.kwargs, self.result = operator, args, kwargs, result
        self.number, self.layer, self.repetition, self.module_inputs = number, layer, repetition, module_inputs
        self.operands = operator_tensors([*args, *kwargs.values()] if kwargs else args)
        self.results = operator_tensors(result if isinstance(result, tuple) else (result,))

    @property
    def name(self) -> str:
        """The operator's name, the same for all overloads: ``"add"``, or ``"torchvision::roi_align"`` if not ATen's."""
        return operator_name(self.operator).removeprefix("aten::")

    def argument(self, name: str) -> Any:
        """The value of an argument, positional or not, its default included.

        Args:
            name: The argument's name in the operator's schema.

        Returns:
            The value; ``None`` where the schema has no such argument.
        """
        for position, declared in enumerate(operator_arguments(self.operator)):
            if declared.name == name:
                if position < len(self.args):
                    return self.args[position]
                return self.kwargs.get(name, declared.default_value)
        return None


def operator_tensors(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among the arguments or results of an operator, which are nested in one list at most.

    Args:
        values: The arguments or results.

    Returns:
        The tensors, in order.
    """
    tensors = []
    for value in values:
        if isinstance(value, Tensor):
            tensors.append(value)
        elif isinstance(value, list | tuple):
            tensors += [item for item in value if isinstance(item, Tensor)]
    return tensors
