"""What the rules of channel labels share: their registry, and what they do when they give up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from ...utils.compat import operator_arguments, operator_name, without_dispatch_modes
from .. import labels as lb
from ..dispatch_mode import Tracer, operands_of

Rule = Callable[[Tracer, Any, Any, Any, Any], None]
RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Registers a function as the rule of the named ATen operators."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def opaque(tracer: Tracer, func: Any, args: Any, kwargs: Any, out: Any, why: str = "has no rule") -> None:
    """Pins everything an operator touches."""
    tracer.pin(
        (args, kwargs),
        f"it feeds {func}, which {why}",
        f"{func} {why}: the channels it reads keep their width",
    )
    for tensor in results(out):
        tracer.put(tensor, lb.LabelMap.constant(lb.FREE if tensor.numel() == 1 else lb.FIXED, tensor.shape), False)


def keep(tracer: Tracer, out: Any, line: np.ndarray, dim: int | None, vanishes: bool) -> None:
    """Gives every result the labels ``line`` along ``dim`` (or the one label of ``line``)."""
    for tensor in results(out):
        plane = (
            lb.LabelMap(tuple(tensor.shape), None, line)
            if dim is None
            else lb.LabelMap.varying(line, dim, tensor.shape)
        )
        tracer.put(tensor, plane, vanishes)


def name_of(func: Any) -> str:
    """The name of an ATen operator in all its overloads; of another library's, with that library's."""
    return operator_name(func).removeprefix("aten::")


def results(out: Any) -> list[Tensor]:
    """The tensors that an operator returned."""
    return operands_of(out if isinstance(out, tuple) else (out,))


def moved(plane: lb.LabelMap, func: Any, *args: Any, **kwargs: Any) -> lb.LabelMap | list[int]:
    """Applies an operator to the labels themselves; see :meth:`LabelMap.from_tensor` for the result."""
    with without_dispatch_modes():
        return lb.LabelMap.from_tensor(func(plane.tensor(), *args, **kwargs))


def argument(func: Any, args: Any, kwargs: Any, name: str) -> Any:
    """The value an operator's argument has in a call, its default included.

    Args:
        func: The ATen operator.
        args: The positional arguments.
        kwargs: The keyword arguments.
        name: The argument's name in the operator's schema.

    Returns:
        The value, ``None`` where the schema has no such argument.
    """
    for index, declared in enumerate(operator_arguments(func)):
        if declared.name == name:
            if index < len(args):
                return args[index]
            return kwargs.get(name, declared.default_value)
    return None
