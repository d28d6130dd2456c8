"""Plain numbers of operators: those that an activation is computed with, which may depend on a width.

``scores / math.sqrt(d)`` and ``x.sum(1) / x.shape[1]`` reach torch as operators with a number. A pruned network must
compute with the numbers of the original, or it is another function.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch

_MAKING = {"full", "scalar_tensor", "fill_", "full_like", "new_full", "baddbmm", "addmm", "addbmm"}


def numbers_in(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[float, ...]:
    """The plain numbers that an operator computes with.

    Args:
        func: An ATen operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Returns:
        The numbers among the arguments, in order; those of operators that move elements, or take a size, are left out.
    """
    if func is torch.ops.aten.lift_fresh.default and args[0].numel() == 1:  # torch.tensor(number)
        return (args[0].item(),)
    if not _computes_with_numbers(func):
        return ()
    return tuple(value for value in (*args, *kwargs.values()) if type(value) in (int, float))


@functools.cache
def _computes_with_numbers(func: Any) -> bool:
    return torch.Tag.pointwise in func.tags or func.overloadpacket.__name__ in _MAKING
