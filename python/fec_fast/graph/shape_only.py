"""Runs for the shapes alone: the operators that take most of a run's time return zeros instead.

Which channels belong together, and whether a network's code accepts its new widths, does not depend on the numbers. A
model that looks at numbers (a detector that keeps the best boxes), or that fails, is run again as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..utils.compat import TorchDispatchMode, suggest_memory_format

aten = torch.ops.aten


class DataDependentError(Exception):
    """An operator whose result, or its shape, depends on the numbers."""


class BlockValueAccess(TorchFunctionMode):
    """To be entered around a shape-only run: refuses the ways to a tensor's numbers that are no operators.

    Such a run would go on with zeros, perhaps into another branch of the model's code than its numbers would take.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Raises for a method that reads."""
        if func in _READING:
            raise DataDependentError(f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


_READING = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__, Tensor.data_ptr}


def call_shape_only(func: Any, args: Any, kwargs: Any) -> Any:
    """Calls an ATen operator, or returns zeros of the shape that its result has.

    Args:
        func: The operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        What the operator returns, or zeros.

    Raises:
        DataDependentError: The operator looks at numbers that may have been left out.
    """
    shape_of = _SHAPES.get(func)
    if shape_of is not None:
        return shape_of(*args, **kwargs)
    if _looks_at_numbers(func, args):
        raise DataDependentError(str(func))
    return func(*args, **kwargs)


class ShapeOnlyMode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Evaluates every operator with :func:`call_shape_only`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls it."""
        return call_shape_only(func, args, kwargs or {})


def _looks_at_numbers(func: Any, args: Any) -> bool:
    if func is aten.index.Tensor:  # by a mask; by numbers, the shape is that of the indices
        return any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1])
    depends = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
    return depends or func.namespace != "aten"


def _convolution(
    source: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    transposed: bool,
    output_padding: list[int],
    groups: int,
) -> Tensor:
    reads, filters = weight.shape[0], weight.shape[1] * groups
    if not transposed:
        reads, filters = filters, reads
    if source.shape[1] != reads or filters % groups or (bias is not None and len(bias) != filters):
        raise DataDependentError(f"a convolution of {list(source.shape)} by {list(weight.shape)}")  # to fail by itself
    sizes = []
    for at, size in enumerate(source.shape[2:]):
        reach = dilation[at % len(dilation)] * (weight.shape[2 + at] - 1)
        step, edge = stride[at % len(stride)], padding[at % len(padding)]
        if transposed:
            sizes.append((size - 1) * step - 2 * edge + reach + output_padding[at % len(output_padding)] + 1)
        else:
            sizes.append((size + 2 * edge - reach - 1) // step + 1)
    shape = (source.shape[0], filters, *sizes)
    if any(_is_channels_last(tensor) for tensor in (source, weight)):
        return torch.zeros_like(source.new_empty(shape), memory_format=torch.channels_last)
    return source.new_zeros(shape)


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.dim() == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and suggest_memory_format(tensor) == torch.channels_last  # by the strides, where a size of 1 leaves it open
    )


def _mm(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[-1] != right.shape[-2]:
        raise DataDependentError(f"a product of {list(left.shape)} and {list(right.shape)}")
    return left.new_zeros((*left.shape[:-1], right.shape[-1]))


def _addmm(bias: Tensor, left: Tensor, right: Tensor, **_: Any) -> Tensor:
    product = _mm(left, right)
    if torch.broadcast_shapes(bias.shape, product.shape) != product.shape:  # type: ignore[no-untyped-call]
        raise DataDependentError(f"a bias of {list(bias.shape)} for {list(product.shape)}")
    return product


def _batch_norm(source: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    for numbers in (weight, bias, *others[:2]):
        if isinstance(numbers, Tensor) and len(numbers) != source.shape[1]:
            raise DataDependentError(f"a batch norm of {len(numbers)} for {list(source.shape)}")
    return torch.zeros_like(source), source.new_empty(0), source.new_empty(0)


def _in_place(source: Tensor, *_: Any) -> Tensor:
    return source


_SHAPES: dict[Any, Callable[..., Any]] = {
    aten.convolution.default: _convolution,
    aten.mm.default: _mm,
    aten.bmm.default: _mm,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.native_batch_norm.default: _batch_norm,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.relu_.default: _in_place,
    aten.hardtanh_.default: _in_place,
    aten.hardswish_.default: _in_place,
    aten.silu_.default: _in_place,
}
