"""Rules of convolutions and matrix products, the operators that sum over channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.computed_weights import computation_of, computation_of_layer
from ..label_tracker import LabelTracker
from ..labels import LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from ..weight_labels import ProductWidths, WeightUse, reason_of
from .activation_products import multiply_activations
from .operands import WeightOperand, is_bias_zero, label_bias
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
    *_: Any,
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


@operator("convolution", "_convolution", shape=_convolution_shape, macs=_convolution_macs)
def convolution(tracker: LabelTracker, call: OperatorCall) -> WeightUse | None:
    """Unites the input channels with the weight's channel axis; the output has the labels of the filters."""
    weight, bias, transposed = WeightOperand.of(tracker, call.args[1]), call.args[2], call.args[6]
    use = None if weight is None else _convolution_use(tracker, call, weight)
    if weight is None or use is None:
        _refuse(tracker, call, _NOT_PLAIN if weight is None else _OTHERWISE)
        return None
    _finish(tracker, use, bias)
    _check_inputs(tracker, use, weight, call.args[0], 0 if transposed else 1)
    channel_dim = call.args[0].dim() - call.args[1].dim() + 1
    zero = weight.is_zero(1 if transposed else 0) and is_bias_zero(tracker, bias)  # a masked filter, with its bias
    tracker.set_label_map(call.result, LabelMap.compact(use.outputs, channel_dim, call.result.shape), zero)
    return use


_NOT_PLAIN = (
    "has a weight that is not a parameter of the model (one that its code computes: store it in an ordinary layer)"
)

_OTHERWISE = (
    "meets channels on another dimension than its own (a reshape before it), or other groups than its module holds"
)


def _refuse(tracker: LabelTracker, call: OperatorCall, why: str = _NOT_PLAIN) -> None:
    """Keeps what a call reads; where torch's tools compute the weight, the reason says how to undo it."""
    computation = computation_of_layer(tracker.modules, call.layer)
    if computation is not None:
        tracker.weights.note_kept(computation)
        tracker.pin((call.args, call.kwargs), reason_of(computation))
    tracker.pin_call(call, why)


def _convolution_use(tracker: LabelTracker, call: OperatorCall, weight: WeightOperand) -> WeightUse | None:
    """Labels the weight of a convolution.

    A grouped convolution can lose channels in two ways: whole groups (then ``groups`` itself shrinks), or the same
    positions in every group. The one with more independent decisions is taken; a depthwise convolution, with or
    without a multiplier, is the first with one channel per group. In both, every remaining group has the same size,
    which is what ``torch.nn.Conv2d(groups=...)`` can express.

    Args:
        tracker: The labels.
        call: A call of ``aten::convolution``.
        weight: Its weight.

    Returns:
        The use of the weight; ``None``, with nothing changed, where the operator is not understood.
    """
    source, _, _, _, _, _, transposed, _, groups = call.args[:9]
    label_map = tracker.labels_of(source)
    channel_dim = source.dim() - weight.tensor.dim() + 1
    if label_map.dim not in (None, channel_dim):
        return None
    inputs = free_as_fixed(label_map.along(channel_dim))
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    inputs_per_group, outputs_per_group = len(inputs) // groups, call.result.shape[channel_dim] // groups
    layer = weight.layer
    whole_groups = groups > 1 and groups >= max(inputs_per_group, outputs_per_group)
    if whole_groups and getattr(tracker.modules[layer], "groups", groups) != groups:
        return None  # the attribute that would be changed is another number
    reason = f"it feeds {layer or 'a weight of the model itself'} together with channels of fixed width"
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
        weight.labels(0, inputs if transposed else outputs, reason)
        weight.pin(1, "whole groups are removed, so a group keeps its size")
    else:
        # The axis that has one group's channels (inputs; transposed: outputs) stands for all groups.
        weight.labels(in_axis, inputs if transposed else inputs[:inputs_per_group], reason)
        outputs = weight.labels(out_axis)
        if transposed:
            outputs = np.tile(outputs, groups)
        elif groups > 1:
            tracker.sets.unite(outputs[np.arange(len(outputs)) % outputs_per_group], outputs, reason)
    return weight.use(out_axis, in_axis, groups, whole_groups, inputs, outputs)


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
@operator("bmm", shape=_product_shape, macs=_product_macs(0))
@operator("baddbmm", shape=_biased_product_shape, macs=_product_macs(1))
def product(tracker: LabelTracker, call: OperatorCall) -> WeightUse | ProductWidths | None:
    """Does for ``source @ weight + bias``, and for ``weight @ source``, what :func:`convolution` does."""
    bias, left, right = call.args if len(call.args) == 3 else (None, *call.args)
    on_right, on_left = (WeightOperand.of(tracker, tensor) for tensor in (right, left))
    if on_right is None and on_left is None and not any(map(tracker.is_from_parameters, (left, right))):
        return multiply_activations(tracker, call, bias, left, right)
    weight, last = on_right or on_left, call.result.dim() - 1
    in_dim, out_dim, channel_dim = (last - 1, last, last) if on_right else (last, last - 1, last - 1)
    source = left if on_right else right
    use = None if weight is None else _product_use(tracker, call, weight, source, in_dim, out_dim)
    if weight is None or use is None or not _is_bias(tracker, bias, is_right=on_right is not None):
        _refuse(tracker, call)
        return None
    _finish(tracker, use, bias)
    _check_inputs(tracker, use, weight, source, in_dim)
    zero = weight.is_zero(out_dim) and is_bias_zero(tracker, bias)
    tracker.set_label_map(call.result, LabelMap.compact(use.outputs, channel_dim, call.result.shape), zero)
    return use


def _is_bias(tracker: LabelTracker, bias: Tensor | None, *, is_right: bool) -> bool:
    return bias is None or (is_right and bias.dim() == 1 and tracker.is_from_parameters(bias))


def _product_use(
    tracker: LabelTracker, call: OperatorCall, weight: WeightOperand, source: Tensor, in_dim: int, out_dim: int
) -> WeightUse | None:
    """Labels the weight of a matrix product; ``None``, with nothing changed, where it is not a linear layer's.

    Shapes: source ``[rows, in]`` or ``[in, rows]``, weight ``[in, out]`` or ``[out, in]``, result ``[rows, out]`` or
    ``[out, rows]``; in products of batches all with another first dimension, along which the weight is the same.
    """
    last = call.result.dim() - 1
    if any(call.kwargs.get(name, 1) != 1 for name in ("alpha", "beta")) or not weight.is_alike(range(last - 1)):
        return None
    label_map, met_dim = tracker.labels_of(source), 2 * call.result.dim() - 3 - in_dim
    if label_map.dim not in (None, met_dim):
        return None
    inputs = free_as_fixed(label_map.along(met_dim))
    weight.labels(in_dim, inputs, f"it feeds {weight.layer} together with channels of fixed width")
    return weight.use(out_dim, in_dim, 1, False, inputs, weight.labels(out_dim))


def _check_inputs(tracker: LabelTracker, use: WeightUse, weight: WeightOperand, source: Tensor, in_dim: int) -> None:
    """Keeps channels that would still be read: neither they nor a computed weight are zero when masked."""
    if not weight.is_zero(in_dim) and not tracker.label_map(source)[1]:
        tracker.sets.pin(use.inputs, reason_of(computation_of(tracker.modules, weight.name)))


def _finish(tracker: LabelTracker, use: WeightUse, bias: Tensor | None) -> None:
    """Labels the bias like the filters, and keeps the use, unless the weight was used in this way before.

    A layer without inputs or without filters has no weights that could be scored: it stays as it is.
    """
    first = tracker.weight_uses.setdefault(use.weight, use)
    if all(use.way != other.way for other in [first, *tracker.further_uses]):
        tracker.further_uses.append(use)
    if not (len(use.inputs) and len(use.outputs)):
        for labels in (use.inputs, use.outputs):
            tracker.sets.pin(labels, f"the weight of {use.layer} has no elements")
    if bias is not None:
        label_bias(tracker, use, bias)


@operator("torchvision::deform_conv2d")
def deformable_convolution(tracker: LabelTracker, call: OperatorCall) -> WeightUse | None:
    """A convolution whose taps are moved by offsets, and scaled by a mask (Dai et al., 2017; Zhu et al., 2019)."""
    source, weight, offsets, masks, bias = call.args[:5]
    operand, label_map = WeightOperand.of(tracker, weight), tracker.labels_of(source)
    weight_groups, offset_groups = call.args[11:13]
    if operand is None or label_map.dim not in (None, 1) or weight_groups != 1 or offset_groups != 1:
        _refuse(tracker, call, "is understood for one group and a weight of the model alone")
        return None
    tracker.pin((offsets, masks), f"its channels are offsets, or a mask, of {call.operator}")
    inputs = free_as_fixed(label_map.along(1))
    operand.labels(1, inputs, f"it feeds {operand.layer} together with channels of fixed width")
    use = operand.use(0, 1, 1, False, inputs, operand.labels(0))
    _finish(tracker, use, bias)
    _check_inputs(tracker, use, operand, source, 1)
    zero = operand.is_zero(0) and is_bias_zero(tracker, bias)
    tracker.set_label_map(call.result, LabelMap.compact(use.outputs, 1, call.result.shape), zero)
    return use
