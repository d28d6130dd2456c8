"""Rules of convolutions and matrix products, the operators that sum over channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..label_tracker import LabelTracker, ParameterView, WeightUse
from ..labels import LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from .registry import DataDependentError, MacsFunction, operator


def _convolution_shape(
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
    """Zeros of the shape that the documentation of ``torch.nn.ConvNd`` and ``ConvTransposeNd`` gives."""
    channels, filters = weight.shape[0], weight.shape[1] * groups
    if not transposed:
        channels, filters = filters, channels
    if source.shape[1] != channels or filters % groups or (bias is not None and len(bias) != filters):
        raise DataDependentError(f"a convolution of {list(source.shape)} by {list(weight.shape)}")
    sizes = []
    for dim, size in enumerate(source.shape[2:]):
        # Lists of one number hold for all dimensions.
        reach = dilation[dim % len(dilation)] * (weight.shape[2 + dim] - 1)
        step, edge = stride[dim % len(stride)], padding[dim % len(padding)]
        if transposed:
            sizes.append((size - 1) * step - 2 * edge + reach + output_padding[dim % len(output_padding)] + 1)
        else:
            sizes.append((size + 2 * edge - reach - 1) // step + 1)
    shape = (source.shape[0], filters, *sizes)
    if any(_is_channels_last(tensor) for tensor in (source, weight)):
        return torch.zeros_like(source.new_empty(shape), memory_format=torch.channels_last)
    return source.new_zeros(shape)


def _is_channels_last(tensor: Tensor) -> bool:
    """Whether torch takes a tensor for a channels-last one.

    Where sizes of 1 make it contiguous in both ways, its strides tell, as in c10's ``is_channels_last_strides_2d``.
    Torch's Python function for it imports SymPy.
    """
    if tensor.dim() != 4 or not tensor.is_contiguous(memory_format=torch.channels_last):
        return False
    strides, least = tensor.stride(), 0
    if tensor.numel() == 0 or strides[1] == 0:
        return False
    for dim in (1, 3, 2, 0):  # from the innermost to the outermost
        if strides[dim] < least or (dim == 0 and least == strides[1]):
            return False
        least = strides[dim] * tensor.shape[dim]
    return True


def _convolution_macs(call: OperatorCall) -> int:
    """Every weight is used once per output position (of a transposed convolution: input position) and image."""
    source, weight, transposed = call.args[0], call.args[1], call.args[6]
    positions = (source if transposed else call.result).shape[2:]
    return int(weight.numel() * call.result.shape[0] * math.prod(positions))


@operator("convolution", shape=_convolution_shape, macs=_convolution_macs)
def convolution(tracker: LabelTracker, call: OperatorCall) -> WeightUse | None:
    """Unites the input channels with the weight's channel axis; the output has the labels of the filters."""
    use = _convolution_use(tracker, call)
    if use is None:
        tracker.pin_call(call, "has a weight that is not a parameter of the model")
        return None
    bias, channel_dim = call.args[2], call.args[0].dim() - call.args[1].dim() + 1
    _finish(tracker, use, bias)
    # A masked filter is zero with its bias; a bias that is not the model's is not masked.
    zero_when_masked = bias is None or tracker.parameter_view(bias) is not None
    tracker.set_label_map(call.result, LabelMap.compact(use.outputs, channel_dim, call.result.shape), zero_when_masked)
    return use


def _convolution_use(tracker: LabelTracker, call: OperatorCall) -> WeightUse | None:
    """Labels the weight of a convolution.

    A grouped convolution can lose channels in two ways: whole groups (then ``groups`` itself shrinks), or the same
    positions in every group. The one with more independent decisions is taken; a depthwise convolution, with or
    without a multiplier, is the first with one channel per group. In both, every remaining group has the same size,
    which is what ``torch.nn.Conv2d(groups=...)`` can express.

    Args:
        tracker: The labels.
        call: A call of ``aten::convolution``.

    Returns:
        The use of the weight; ``None``, with nothing changed, where the operator is not understood.
    """
    source, weight, _, _, _, _, transposed, _, groups = call.args
    view = tracker.parameter_view(weight)
    label_map = tracker.labels_of(source)
    channel_dim = source.dim() - weight.dim() + 1
    if view is None or view.axes != tuple(range(weight.dim())) or label_map.dim not in (None, channel_dim):
        return None
    inputs = free_as_fixed(label_map.along(channel_dim))
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    inputs_per_group, outputs_per_group = len(inputs) // groups, call.result.shape[channel_dim] // groups
    layer = _owner(view)
    whole_groups = groups > 1 and groups >= max(inputs_per_group, outputs_per_group)
    if whole_groups and getattr(tracker.modules[layer], "groups", None) != groups:
        return None  # the number of groups is not an attribute that could be changed
    reason = f"it feeds {layer} together with channels of fixed width"
    if groups > 1 and (inputs_per_group > 1 or not whole_groups):
        # Whole groups: each input is united with the first of its group. Otherwise: with the one at its position in the
        # first group.
        index = np.arange(len(inputs))
        partner = index - index % inputs_per_group if whole_groups else index % inputs_per_group
        tracker.sets.unite(inputs[partner], inputs, reason)
    if whole_groups:
        # A group's outputs are removed with its inputs, so they have their label. Axis 0 of the weight has all groups
        # (of outputs; transposed: of inputs), axis 1 is that of one group and keeps its size.
        one_to_one = inputs_per_group == outputs_per_group == 1
        outputs = inputs if one_to_one else np.repeat(inputs[::inputs_per_group], outputs_per_group)
        tracker.axis_labels(view, 0, inputs if transposed else outputs, reason)
        tracker.pin_axis(view, 1, "whole groups are removed, so a group keeps its size")
    else:
        # The axis that has one group's channels (inputs; transposed: outputs) stands for all groups.
        tracker.axis_labels(view, in_axis, inputs if transposed else inputs[:inputs_per_group], reason)
        outputs = tracker.axis_labels(view, out_axis)
        if transposed:
            outputs = np.tile(outputs, groups)
        elif groups > 1:
            tracker.sets.unite(outputs[np.arange(len(outputs)) % outputs_per_group], outputs, reason)
    return WeightUse(layer, view.name, out_axis, in_axis, groups, whole_groups, inputs, outputs)


def _product_shape(left: Tensor, right: Tensor) -> Tensor:
    if left.shape[-1] != right.shape[-2]:
        raise DataDependentError(f"a product of {list(left.shape)} and {list(right.shape)}")
    return left.new_zeros((*left.shape[:-1], right.shape[-1]))


def _biased_product_shape(bias: Tensor, left: Tensor, right: Tensor, **_: Any) -> Tensor:
    product = _product_shape(left, right)
    if np.broadcast_shapes(bias.shape, product.shape) != tuple(product.shape):  # torch's own function imports SymPy
        raise DataDependentError(f"a bias of {list(bias.shape)} for {list(product.shape)}")
    return product


def _product_macs(left: int) -> MacsFunction:
    """For a matrix product whose left factor is the argument ``left``: each of its elements meets each column."""
    return lambda call: int(call.args[left].numel() * call.result.shape[-1])


@operator("mm", shape=_product_shape, macs=_product_macs(0))
@operator("addmm", shape=_biased_product_shape, macs=_product_macs(1))
def linear(tracker: LabelTracker, call: OperatorCall) -> WeightUse | None:
    """Does for ``source @ weight + bias``, with a permuted view of a parameter, what :func:`convolution` does."""
    use = _linear_use(tracker, call)
    if use is None:
        tracker.pin_call(call, "has a weight that is not a parameter of the model")
        return None
    _finish(tracker, use, call.args[0] if len(call.args) == 3 else None)
    tracker.set_label_map(call.result, LabelMap.compact(use.outputs, 1, call.result.shape), True)
    return use


def _linear_use(tracker: LabelTracker, call: OperatorCall) -> WeightUse | None:
    """Labels the weight of a matrix product; ``None``, with nothing changed, where it is not a linear layer's.

    Shapes: source ``[rows, in]``, weight ``[in, out]``, bias ``[out]``, result ``[rows, out]``.
    """
    bias, source, weight = call.args if len(call.args) == 3 else (None, *call.args)
    if any(call.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")):
        return None
    view = tracker.parameter_view(weight)
    label_map = tracker.labels_of(source)
    if view is None or view.tensor.dim() != 2 or label_map.dim not in (None, 1):
        return None
    if bias is not None and (tracker.parameter_view(bias) is None or bias.dim() != 1):
        return None
    in_axis, out_axis = view.axes
    layer, inputs = _owner(view), free_as_fixed(label_map.along(1))
    tracker.axis_labels(view, in_axis, inputs, f"it feeds {layer} together with channels of fixed width")
    outputs = tracker.axis_labels(view, out_axis)
    return WeightUse(layer, view.name, out_axis, in_axis, 1, False, inputs, outputs)


@operator("bmm", shape=_product_shape, macs=_product_macs(0))
@operator("baddbmm", shape=_biased_product_shape, macs=_product_macs(1))
def batched_product(tracker: LabelTracker, call: OperatorCall) -> None:
    """Multiplies features with features (attention): which channels could be removed together is not worked out."""
    tracker.pin_call(call, "has no rule")


def _finish(tracker: LabelTracker, use: WeightUse, bias: Tensor | None) -> None:
    """Labels the bias like the filters, and keeps the use, unless the weight was used before."""
    tracker.weight_uses.setdefault(use.weight, use)
    if bias is None:
        return
    view = tracker.parameter_view(bias)
    if view is None:
        tracker.sets.pin(use.outputs, f"the bias of {use.layer} is not a parameter of the model")
    else:
        tracker.axis_labels(view, 0, use.outputs, f"the bias of {use.layer} is also that of channels of fixed width")


def _owner(view: ParameterView) -> str:
    return view.name.rpartition(".")[0]
