"""How channel labels pass through convolutions and linear layers, the operators that sum over channels."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from .. import labels as lb
from ..dispatch_mode import OperatorCost, Owned, Tracer, WeightUse


def contract_convolution(tracer: Tracer, args: Any, out: Tensor) -> bool:
    """Ties the input channels to the weight's channel axis and gives the output the labels of its filters.

    A grouped convolution can lose channels in two ways: whole groups (then ``groups`` itself shrinks), or the same
    positions in every group. The one with more independent decisions is taken; a depthwise convolution, with or
    without a multiplier, is the first with one channel a group.

    Args:
        tracer: Holds the planes.
        args: The arguments of ``aten::convolution``.
        out: Its result.

    Returns:
        Whether the operator was understood; nothing was changed where not.
    """
    source, weight, bias, _, _, _, transposed, _, groups = args
    owned = tracer.owned(weight)
    plane, _ = tracer.plane(source)
    channel_dim = source.dim() - weight.dim() + 1
    if owned is None or owned.axes != tuple(range(weight.dim())) or plane.dim not in (None, channel_dim):
        return False
    inputs = lb.free_as_fixed(plane.along(channel_dim))
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    per_group_in, per_group_out = len(inputs) // groups, out.shape[channel_dim] // groups
    layer = _owner(owned)
    whole = groups > 1 and groups >= max(per_group_in, per_group_out)
    if whole and getattr(tracer.modules[layer], "groups", None) != groups:
        return False  # the number of groups is not an attribute that could be changed
    sets, reason = tracer.sets, f"it feeds {layer} together with channels of fixed width"
    if groups > 1 and (per_group_in > 1 or not whole):
        index = np.arange(len(inputs))
        sets.unite(inputs[index - index % per_group_in if whole else index % per_group_in], inputs, reason)
    if whole:
        single = per_group_in == per_group_out == 1
        outputs = inputs if single else np.repeat(inputs[::per_group_in], per_group_out)
        tracer.axis(owned, 0, inputs if transposed else outputs, reason)
        tracer.pin_axis(owned, 1, "whole groups are removed, so a group keeps its size")
    else:
        tracer.axis(owned, in_axis, inputs if transposed else inputs[:per_group_in], reason)
        line = tracer.axis(owned, out_axis)
        if transposed:
            outputs = np.tile(line, groups)
        else:
            if groups > 1:
                sets.unite(line[np.arange(len(line)) % per_group_out], line, reason)
            outputs = line
    _finish(tracer, WeightUse(layer, owned.name, out_axis, in_axis, groups, whole, inputs, outputs), bias)
    vanishes = bias is None or tracer.owned(bias) is not None
    tracer.put(out, lb.LabelMap.compact(outputs, channel_dim, out.shape), vanishes)
    return True


def contract_linear(tracer: Tracer, bias: Tensor | None, source: Tensor, weight: Tensor, out: Tensor) -> bool:
    """Does the same for ``source @ weight + bias`` with a weight (transposed or not) of the model.

    Args:
        tracer: Holds the planes.
        bias: ``None`` or one number a feature.
        source: ``[rows, in]``.
        weight: ``[in, out]``, a permuted view of a parameter.
        out: The result ``[rows, out]``.

    Returns:
        Whether the operator was understood; nothing was changed where not.
    """
    owned = tracer.owned(weight)
    plane, _ = tracer.plane(source)
    if owned is None or owned.tensor.dim() != 2 or plane.dim not in (None, 1):
        return False
    if bias is not None and (tracer.owned(bias) is None or bias.dim() != 1):
        return False
    in_axis, out_axis = owned.axes
    inputs = lb.free_as_fixed(plane.along(1))
    layer = _owner(owned)
    tracer.axis(owned, in_axis, inputs, f"it feeds {layer} together with channels of fixed width")
    outputs = tracer.axis(owned, out_axis)
    _finish(tracer, WeightUse(layer, owned.name, out_axis, in_axis, 1, False, inputs, outputs), bias)
    tracer.put(out, lb.LabelMap.compact(outputs, 1, out.shape), True)
    return True


def _finish(tracer: Tracer, use: WeightUse, bias: Tensor | None) -> None:
    """Ties the bias to the filters and remembers the use.

    Args:
        tracer: Holds the labels.
        use: The use of a weight; a weight used again is remembered by its first use.
        bias: The bias, if any.
    """
    tracer.weight_uses.setdefault(use.weight, use)
    cost = tracer.costs[-1]
    tracer.costs[-1] = OperatorCost(cost.layer, cost.macs, use.weight)
    if bias is None:
        return
    owned = tracer.owned(bias)
    if owned is None:
        tracer.sets.pin(use.outputs, f"the bias of {use.layer} is not a parameter of the model")
    else:
        tracer.axis(owned, 0, use.outputs, f"the bias of {use.layer} also serves channels of fixed width")


def _owner(owned: Owned) -> str:
    return owned.name.rpartition(".")[0]
