"""The rule of any ATen operator, registered or not."""

from __future__ import annotations

import functools
import sys
from typing import Any

import torch

from ...utils.compat import operator_name
from ..operator_call import OperatorCall
from . import contractions, cuts, elementwise, norms, recurrent, reductions, spatial, views  # noqa: F401 (they register their rules)
from .by_trial import act_as_tried
from .registry import RULES, DataDependentError, MacsFunction, OperatorRule, ShapeFunction

_COUNTED_BY_TORCH = ("mm", "conv", "attention")  # parts of names


def rule_of(func: Any) -> OperatorRule:
    """The rule of an operator; it is put together once and kept, until further rules are registered.

    Args:
        func: An ATen operator, or one of another library: a ``torch._ops.OpOverload``.

    Returns:
        The registered rule. What it leaves out, and an operator without a rule, is filled up as the docstring of
        :mod:`fec_fast.graph.rules.registry` says.
    """
    return _rule_of(func, len(RULES))


@functools.cache
def _rule_of(func: Any, registered: int) -> OperatorRule:
    """See :func:`rule_of`. ``registered``, the number of rules, makes the kept rule of an earlier state a miss."""
    name, overload = operator_name(func).removeprefix("aten::"), func.name().removeprefix("aten::")
    rule = RULES.get(overload) or RULES.get(name)
    has_own_arguments = overload in RULES  # the default overload, whose name has no suffix, or one that is registered
    if rule is None:
        rule = OperatorRule(elementwise.pointwise if torch.Tag.pointwise in func.tags else act_as_tried)
    shape, macs = (rule.shape, rule.macs) if has_own_arguments else (None, None)
    return OperatorRule(rule.labels, shape or _refusal(func), macs or _torch_counter(func))


def _refusal(func: Any) -> ShapeFunction | None:
    """For an operator that depends on values, a shape function that raises; operators of others may do anything.

    Operators of the backward pass read what the forward pass has kept for them, and do not check that it is there.
    """
    depends = torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags
    if not depends and func.namespace == "aten" and "backward" not in func.name():
        return None

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise DataDependentError(str(func))

    return refuse


def _torch_counter(func: Any) -> MacsFunction | None:
    """Multiply-accumulates by torch's own counter, which counts floating-point operations, two for each.

    The counter imports Triton, which takes longer than the rest of the package. So it is imported when an operator is
    counted that it may know: one of the kinds it comes with. Where the user has imported it, and perhaps registered
    more, it is asked about all.
    """
    name = "torch.utils.flop_counter"
    if name in sys.modules:
        if func.overloadpacket not in sys.modules[name].flop_registry:
            return None
    elif not any(kind in func.name() for kind in _COUNTED_BY_TORCH):
        return None

    def macs(call: OperatorCall) -> int:
        from torch.utils.flop_counter import flop_registry

        flops = flop_registry.get(func.overloadpacket)
        return int(flops(*call.args, **call.kwargs, out_val=call.result)) // 2 if flops else 0

    return macs
