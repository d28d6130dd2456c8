"""Shape-only runs: the operators that take most of a run's time return zeros of the right shape instead.

Which channels are coupled, and whether a network's code accepts its new widths, does not depend on values. A model
whose code depends on values (a detector that keeps the best boxes), or that fails, is run again with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..utils.compat import without_function_modes
from .rules.lookup import rule_of
from .rules.registry import DataDependentError


def call_shape_only(func: Any, args: Any, kwargs: Any) -> Any:
    """Calls an ATen operator, or returns zeros of the shape that its result has.

    Args:
        func: The operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        What the operator returns, or zeros.

    Raises:
        DataDependentError: The result, or its shape, depends on values, which may be zeros of an operator before it.
    """
    shape = rule_of(func).shape
    return func(*args, **kwargs) if shape is None else shape(*args, **kwargs)


def call_with_values(func: Any, args: Any, kwargs: Any) -> Any:
    """Calls an operator as it is. Where one of another library computes with NumPy, no values leave the model."""
    with contextlib.nullcontext() if func.namespace == "aten" else without_function_modes():
        return func(*args, **kwargs)


class ValueAccess(TorchFunctionMode):
    """Reports the ways to a tensor's values that are no ATen operators."""

    def __init__(self, report: Callable[[Tensor, str], None]) -> None:
        """Remembers what to call.

        Args:
            report: Is called with a tensor and the name of the method that is about to read its values.
        """
        super().__init__()
        self._report = report

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Reports a method that reads values, then calls it."""
        if func in _READING_METHODS:
            self._report(args[0], f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


def block_value_access() -> ValueAccess:
    """Refuses to read values. To be entered around a shape-only run.

    Otherwise the run would continue with zeros, perhaps into another branch of the model's code.
    """

    def refuse(_: Tensor, method: str) -> None:
        raise DataDependentError(method)

    return ValueAccess(refuse)


_READING_METHODS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr}
