"""Rules of normalisations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.compat import NormBase
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


@operator("native_layer_norm", "native_group_norm")
def layer_norm(tracker: LabelTracker, call: OperatorCall) -> None:
    """Statistics over channels change when one is removed."""
    tracker.pin_call(call, "takes statistics over channels")
