"""What operators cost: their multiply-accumulates, half the floating-point operations of torch's own counter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten


def macs_of(func: Any, args: Any, kwargs: Any, out: Any) -> int | None:
    """The multiply-accumulates of a call.

    Args:
        func: An ATen operator.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        out: Its result.

    Returns:
        How many; ``None`` for an operator that is not counted (additions, activations, norms).
    """
    usual = _USUAL.get(func)
    if usual is not None:
        return usual(args, out)
    flops = flop_registry.get(func.overloadpacket)
    return None if flops is None else int(flops(*args, **kwargs, out_val=out)) // 2


def _convolution(args: Any, out: Tensor) -> int:
    source, weight, transposed = args[0], args[1], args[6]
    return int(weight.numel() * out.shape[0] * math.prod((source if transposed else out).shape[2:]))


def _product(at: int) -> Callable[[Any, Tensor], int]:
    """For a matrix product whose left factor is the argument ``at``."""
    return lambda args, out: int(args[at].numel() * out.shape[-1])


# The same numbers as the counter's own, which takes longer to look its arguments over than the operator to run.
_USUAL: dict[Any, Callable[[Any, Tensor], int]] = {
    aten.convolution.default: _convolution,
    aten.mm.default: _product(0),
    aten.bmm.default: _product(0),
    aten.addmm.default: _product(1),
    aten.baddbmm.default: _product(1),
}
