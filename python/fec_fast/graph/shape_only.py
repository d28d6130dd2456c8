"""Shape-only runs: operators that take most of a run's time, and depend on its inputs, return zeros of the right shape.

Which channels are coupled, and whether a network's code accepts its new widths, does not depend on values. A model
whose code depends on values (a detector that keeps the best boxes), or that fails, is run again with them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from ..utils.compat import storage_id, without_function_modes
from ..utils.forward import tensors_in
from .operator_call import operator_tensors
from .parameter_guard import written_tensors
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


class ShapeOnlyRun:
    """Calls the operators of one run for their shapes alone, where their results depend on its inputs.

    What follows from constants and weights is computed: the model's code may keep it outside (a blur kernel in a global
    variable) and use it in every run from then on, and scores are those of computed weights.
    """

    def __init__(self, inputs: Any) -> None:
        """Begins a run.

        Args:
            inputs: Those of the model, nested at will.
        """
        # By memory: what is written to a slice is seen in the whole tensor. The references keep the numbers in use.
        self._dependent: dict[int, StorageWeakRef] = {}
        self._note(tensors_in(inputs))

    def __call__(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Calls an operator, or returns zeros; see :func:`call_shape_only`."""
        if not self._depends(operator_tensors([*args, *kwargs.values()])):
            return func(*args, **kwargs)
        result = call_shape_only(func, args, kwargs)
        self._note_results(result)
        self._note(written_tensors(func, args, kwargs))
        return result

    def note_results(self, args: Sequence[Any], result: Any) -> None:
        """Notes what was computed from an operator's arguments by other means.

        Args:
            args: The arguments.
            result: What the operator would return: a tensor, or several.
        """
        if self._depends(operator_tensors(args)):
            self._note_results(result)

    def _note_results(self, result: Any) -> None:
        self._note(operator_tensors(result if isinstance(result, tuple) else (result,)))

    def _depends(self, tensors: Iterable[Tensor]) -> bool:
        # Sparse tensors have no storage to be known by.
        return any(tensor.layout != torch.strided or storage_id(tensor) in self._dependent for tensor in tensors)

    def _note(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if tensor.layout == torch.strided and storage_id(tensor) not in self._dependent:
                self._dependent[storage_id(tensor)] = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


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
