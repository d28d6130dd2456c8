"""Rules of normalisations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.compat import NormBase
from ...utils.number_attributes import as_numbers
from ..channel_statistics import REMEDY, NormCut
from ..cuts import place_of
from ..held_sizes import HeldSize
from ..label_tracker import LabelTracker
from ..labels import LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from .registry import DataDependentError, operator


def _batch_norm_shape(source: Tensor, weight: Tensor | None, bias: Tensor | None, *others: Any) -> tuple[Tensor, ...]:
    for values in (weight, bias, *others[:2]):  # then follow the running mean and variance
        if isinstance(values, Tensor) and len(values) != source.shape[1]:
            raise DataDependentError(f"a batch norm of {len(values)} for {list(source.shape)}")
    return torch.zeros_like(source), source.new_empty(0), source.new_empty(0)


@operator("native_batch_norm", "_native_batch_norm_legit_no_training", shape=_batch_norm_shape)
@operator("_native_batch_norm_legit", "cudnn_batch_norm")
def batch_norm(tracker: LabelTracker, call: OperatorCall) -> None:
    """Scales each channel by numbers of its own: the parameters and running statistics follow the channel.

    An instance norm reaches torch as a batch norm over ``[1, batch * channels, ...]``, with its parameters repeated.
    """
    label_map, zero = tracker.label_map(call.args[0])
    if label_map.dim not in (None, 1):
        tracker.pin_call(call, "normalises something else than the model's own channels")
        return
    labels = free_as_fixed(label_map.along(1))
    views = []
    for tensor in (tensor for tensor in call.args[1:5] if isinstance(tensor, Tensor)):
        view = tracker.parameter_view(tensor)
        if view is not None:
            tracker.axis_labels(view, 0, labels, f"{view.name} is also used with a tensor of fixed width")
        else:
            own = free_as_fixed(tracker.labels_of(tensor).along(0))
            tracker.sets.unite(labels, own, f"it meets values of a fixed number of channels in {call.operator}")
        views.append(view)
    _hold_width(tracker, call.layer, labels)
    # A masked channel has its weight and bias set to zero, so with both of them the result is zero when masked. Without
    # a bias it is zero where the source is: a masked running mean is zero.
    has_both = isinstance(call.args[1], Tensor) and isinstance(call.args[2], Tensor)
    zero_when_masked = None not in views[:2] if has_both else zero and call.args[2] is None
    output = call.result[0]
    tracker.set_label_map(output, LabelMap.compact(labels, 1, output.shape), zero_when_masked)


def _hold_width(tracker: LabelTracker, layer: str, labels: np.ndarray) -> None:
    """Notes that a norm without parameters holds its width: nothing else in the plan would tell it.

    Args:
        tracker: The labels.
        layer: The module in whose code the norm runs.
        labels: The labels of the channels, int64; of an instance norm once for each image.
    """
    module = tracker.modules[layer]
    if isinstance(module, NormBase) and module.weight is None:
        width = module.num_features
        if len(labels) % width == 0 and np.array_equal(labels, np.tile(labels[:width], len(labels) // width)):
            tracker.hold(HeldSize(layer, "num_features", width, (labels[:width],)))


def _layer_norm_shape(source: Tensor, shape: Sequence[int], *_: Any) -> tuple[Tensor, ...]:
    if list(source.shape[-len(shape) :]) != list(shape):
        raise DataDependentError(f"a layer norm over {list(shape)} for {list(source.shape)}")
    return source.new_zeros(source.shape), source.new_empty(0), source.new_empty(0)


@operator("native_layer_norm", shape=_layer_norm_shape)
def layer_norm(tracker: LabelTracker, call: OperatorCall) -> None:
    """Takes statistics over the last dimensions: channels among them may go only where norms may run over the others.

    Where norms do, the removed channels of the masked original are zero behind the norm.
    """
    source, shape, *parameters = call.args[:4]
    label_map, zero = tracker.label_map(source)
    dim, first = label_map.dim, source.dim() - len(shape)
    scales = [tensor for tensor in parameters if isinstance(tensor, Tensor)]
    if dim is None or dim < first:  # inside each channel, or over channels of fixed width
        _label_scales(tracker, call, scales)
        tracker.set_label_map(call.result[0], label_map, zero and not isinstance(parameters[1], Tensor))
        return
    labels = free_as_fixed(label_map.labels)
    if not tracker.run_over_kept(call, dim, labels):
        tracker.pin_call(call, f"takes statistics over channels ({REMEDY})")
        return
    _label_scales(tracker, call, scales, labels, dim - first)
    cut = NormCut(call.number, call.layer, call.operator, LabelMap(label_map.shape, dim, labels), tuple(shape))
    tracker.cuts.append(cut)
    if as_numbers(vars(tracker.modules[call.layer]).get("normalized_shape")) == list(shape):
        counted = tuple(channels for _, channels in cut.sequence())
        tracker.hold(HeldSize(call.layer, "normalized_shape", list(shape), counted))
    tracker.set_label_map(call.result[0], LabelMap.varying(labels, dim, label_map.shape), True)


def _group_norm_shape(
    source: Tensor, weight: Tensor | None, bias: Tensor | None, _: int, channels: int, *others: Any
) -> tuple[Tensor, ...]:
    if any(values is not None and len(values) != channels for values in (weight, bias)):
        raise DataDependentError(f"a group norm of parameters that do not fit {list(source.shape)}")
    return torch.zeros_like(source), source.new_empty(0), source.new_empty(0)


@operator("native_group_norm", shape=_group_norm_shape)
def group_norm(tracker: LabelTracker, call: OperatorCall) -> None:
    """Takes statistics over the channels of each group.

    Whole groups can go: the statistics of the others are the same without them. Where norms may run over the kept
    channels alone, every group loses the channels at the same positions instead.
    """
    source, weight, bias, _, channels, _, groups = call.args[:7]
    label_map, zero = tracker.label_map(source)
    scales = [tensor for tensor in (weight, bias) if isinstance(tensor, Tensor)]
    if label_map.dim is None:  # of fixed width
        _label_scales(tracker, call, scales)
        tracker.set_label_map(call.result[0], label_map, False)
        return
    if label_map.dim != 1:
        tracker.pin_call(call, "normalises something else than channels here")
        return
    labels, size = free_as_fixed(label_map.labels), channels // groups
    reason = f"{place_of(call)} takes statistics over it together with channels of fixed width"
    module = vars(tracker.modules[call.layer])
    over_kept = size > 1 and tracker.run_over_kept(call, 1, labels)
    if over_kept:
        tracker.sets.unite(labels[np.arange(channels) % size], labels, reason)
    else:
        held = [name for name, value in module.items() if "group" in name and type(value) is int and value == groups]
        if groups == 1 or not held:
            why = "" if groups == 1 else f", in {groups} groups by a number in the model's code"
            tracker.pin_call(call, f"takes statistics over channels{why} ({REMEDY})")
            return
        tracker.sets.unite(np.repeat(labels[::size], size), labels, reason)
        tracker.note_statistics(call, 1, labels, exact=True)
        tracker.hold(HeldSize(call.layer, held[0], groups, (labels[::size],)))
    if module.get("num_channels") == channels:
        tracker.hold(HeldSize(call.layer, "num_channels", channels, (labels,)))
    _label_scales(tracker, call, scales, labels, 0)
    # Masked parameters make a masked group zero; over the kept channels alone, the original's norm leaves zeros.
    are_masked = len(scales) == 2 and all(tracker.parameter_view(tensor) is not None for tensor in scales)
    zero_when_masked = over_kept or are_masked or (zero and bias is None)
    tracker.set_label_map(call.result[0], LabelMap(label_map.shape, 1, labels), zero_when_masked)


def _label_scales(
    tracker: LabelTracker, call: OperatorCall, scales: Sequence[Tensor], labels: np.ndarray | None = None, dim: int = -1
) -> None:
    """Gives the weight and bias of a norm the labels of the channels along one dimension; others keep their size."""
    for tensor in scales:
        view = tracker.parameter_view(tensor)
        if view is None and labels is None:
            tracker.pin(tensor, f"it scales positions in {call.operator}")
            continue
        if view is None:
            assert labels is not None
            own = free_as_fixed(tracker.labels_of(tensor).along(dim))
            tracker.sets.unite(labels, own, f"it meets values of a fixed number of channels in {call.operator}")
            continue
        for own_dim, axis in enumerate(view.axes):
            if own_dim == dim:
                reason = f"{view.name} is also used with a tensor of fixed width"
                tracker.axis_labels(view, axis, labels, reason)
            else:
                tracker.pin_axis(view, axis, f"it scales positions in {call.operator}")
