"""What the rules of channel labels share: their registry, and what they do when they give up."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from . import labels as lb
from .tracer import Tracer, tensors_in

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
    for tensor in tensors_in(out):
        tracer.put(tensor, lb.constant(lb.FREE if tensor.numel() == 1 else lb.FIXED, tensor.shape), False)


def keep(tracer: Tracer, out: Any, line: Sequence[int], dim: int | None, vanishes: bool) -> None:
    """Gives every result the labels ``line`` along ``dim`` (or the one label of ``line``)."""
    for tensor in tensors_in(out):
        plane = lb.constant(line[0], tensor.shape) if dim is None else lb.spread(line, dim, tensor.shape)
        tracer.put(tensor, plane, vanishes)


def line_of(plane: Tensor) -> tuple[list[int], int | None]:
    """The labels of a plane along the dimension on which they vary; ``None`` where they do not."""
    dims = lb.varying(plane)
    if dims:
        return lb.along(plane, dims[0]), dims[0]
    return ([int(plane[(0,) * plane.dim()])] if plane.numel() else [lb.FREE]), None


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
    for index, declared in enumerate(func._schema.arguments):
        if declared.name == name:
            if index < len(args):
                return args[index]
            return kwargs.get(name, declared.default_value)
    return None
