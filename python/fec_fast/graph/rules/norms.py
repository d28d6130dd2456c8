"""Rules of normalisations."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

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
    """Scales each channel by numbers of its own: the parameters and running statistics follow the channel."""
    label_map = tracker.labels_of(call.args[0])
    per_channel = [tensor for tensor in call.args[1:5] if isinstance(tensor, Tensor)]
    views = [tracker.parameter_view(tensor) for tensor in per_channel]
    if label_map.dim not in (None, 1) or any(view is None for view in views):
        tracker.pin_call(call, "normalises something else than the model's own channels")
        return
    labels = free_as_fixed(label_map.along(1))
    for view in views:
        assert view is not None
        tracker.axis_labels(view, 0, labels, f"{view.name} is also used with a tensor of fixed width")
    # A masked channel has its weight and bias set to zero, so with both of them the result is zero when masked.
    zero_when_masked = isinstance(call.args[1], Tensor) and isinstance(call.args[2], Tensor)
    output = call.result[0]
    tracker.set_label_map(output, LabelMap.compact(labels, 1, output.shape), zero_when_masked)


@operator("native_layer_norm", "native_group_norm")
def layer_norm(tracker: LabelTracker, call: OperatorCall) -> None:
    """Statistics over channels change when one is removed."""
    tracker.pin_call(call, "takes statistics over channels")
