"""Label rules of recurrent layers: what they read may shrink, their hidden state keeps its width."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..label_tracker import LabelTracker
from ..labels import FIXED, LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from .registry import operator


def _label_layer(tracker: LabelTracker, call: OperatorCall, source: Tensor, readers: Sequence[Tensor]) -> None:
    """Unites the input's channels with the columns of the weights that read them, and keeps everything else."""
    label_map = tracker.labels_of(source)
    views = [tracker.parameter_view(reader) for reader in readers]
    if label_map.dim not in (None, source.dim() - 1) or any(view is None or view.tensor.dim() != 2 for view in views):
        tracker.pin_call(call, "has weights that are not parameters of the model, or reads channels as positions")
        return
    inputs = free_as_fixed(label_map.along(source.dim() - 1))
    for view in views:
        assert view is not None
        tracker.axis_labels(view, view.axes[1], inputs, f"{view.name} is also used with a tensor of fixed width")
        tracker.pin_axis(view, view.axes[0], "the hidden state of a recurrent layer keeps its width")
    others = [tensor for tensor in call.operands if tensor is not source and not any(tensor is one for one in readers)]
    tracker.pin(others, "the hidden state of a recurrent layer keeps its width")
    for result in call.results:
        tracker.set_label_map(result, LabelMap.constant(FIXED, result.shape), False)


@operator("mkldnn_rnn_layer")
def one_direction(tracker: LabelTracker, call: OperatorCall) -> None:
    """One layer of an LSTM in one direction, on the CPU."""
    _label_layer(tracker, call, call.args[0], [call.args[1]])
