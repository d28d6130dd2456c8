"""Label rules of operators that reduce a dimension, or relate the elements along one to one another."""

from __future__ import annotations

import numpy as np

from ..channel_statistics import REMEDY
from ..label_tracker import LabelTracker
from ..labels import FREE, free_as_fixed
from ..operator_call import OperatorCall
from .registry import operator

_EXTREMES = ("amax", "amin", "max", "min")
_STATISTICS = ("mean", "var", "std", "var_mean", "std_mean", *_EXTREMES)


@operator(*_STATISTICS, "sum", "linalg_vector_norm", "norm")
def reduce(tracker: LabelTracker, call: OperatorCall) -> None:
    """Drops dimensions. Over the channels, only a sum of terms that are zero when masked is the same without them.

    Means, variances and extremes may run over the kept channels alone, where norms may: hand-written norms and spatial
    attention are made of them. The position of an extreme is that of a channel, so what reads it keeps the channels.
    """
    source, positions = call.args[0], None
    label_map, zero = tracker.label_map(source)
    given = call.argument("dim")
    given = [given] if isinstance(given, int) else given
    rank = source.dim()
    reduced = sorted({dim % rank for dim in given}) if given else list(range(rank))
    labels, dim, name = label_map.labels, label_map.dim, call.name
    if dim is not None and dim in reduced:
        order = call.argument("ord")
        is_same = zero and (name == "sum" or (name == "linalg_vector_norm" and order in (1, 2)))
        may_change = name in _STATISTICS
        if not (is_same or (may_change and tracker.run_over_kept(call, dim, free_as_fixed(labels)))):
            remedy = f" ({REMEDY})" if may_change else ""
            note = f"{call.operator} runs over channels: they keep their width{remedy}"
            tracker.pin(source, f"{call.operator} runs over all its channels{remedy}", note)
        elif name in ("max", "min"):
            positions = free_as_fixed(labels)
        labels, dim, zero = np.array([FREE]), None, False
    if dim is not None and not call.argument("keepdim"):
        dim -= sum(d < dim for d in reduced)
    # The operators named here are zero over zeros. Of the others (indices of maxima, say) nothing is assumed.
    tracker.label_results(call, labels, dim, zero and name in ("mean", "sum", "amax", "amin", "linalg_vector_norm"))
    if positions is not None:
        for result in call.results[1:]:
            tracker.pin_when_read(result, positions, f"{call.operator} gives the positions of channels")


@operator("_softmax", "_safe_softmax", "_log_softmax", "cumsum", "sort")
def relate(tracker: LabelTracker, call: OperatorCall) -> None:
    """Relates the elements along one dimension to one another; channels may not be among them."""
    label_map = tracker.labels_of(call.args[0])
    if label_map.dim is not None and label_map.dim == call.argument("dim") % call.args[0].dim():
        tracker.pin_call(call, "relates channels to one another")
        return
    tracker.label_results(call, label_map.labels, label_map.dim, False)
