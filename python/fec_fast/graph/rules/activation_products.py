"""The rule of matrix products of activations with activations: attention, non-local blocks, context pooling."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..label_tracker import LabelTracker
from ..labels import FIXED, LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from ..weight_labels import ProductWidths


def multiply_activations(
    tracker: LabelTracker, call: OperatorCall, bias: Tensor | None, left: Tensor, right: Tensor
) -> ProductWidths:
    """Labels ``left @ right + bias``, of shapes ``[..., rows, in] @ [..., in, columns]``.

    Channels that the product sums over (the width of a query and its key) are removed in pairs: where one of both is
    zero when masked, so is what the pair adds to the sum. Channels that lie on rows, columns or batches (the width of
    a value, heads) go on to the result; a batch of one factor is removed with that of the other.

    Args:
        tracker: The labels.
        call: A call of a matrix product.
        bias: What is added to the product, if anything.
        left: The left factor.
        right: The right factor.

    Returns:
        The channels that its cost grows with.
    """
    rank = call.result.dim()
    (on_left, left_zero), (on_right, right_zero) = (_factor(tracker, call, tensor) for tensor in (left, right))
    carried = [(each, dim) for each, dim in ((on_left, rank - 1), (on_right, rank - 2)) if each.dim not in (None, dim)]
    if len(carried) == 2 and on_left.dim != on_right.dim:
        # The result would have channels on two dimensions. The fewer are kept.
        carried.sort(key=lambda each: np.count_nonzero(each[0].labels > FIXED))
        kept = left if carried[0][0] is on_left else right
        tracker.pin(kept, f"each of them is multiplied with each channel of another tensor in {call.operator}")
        constant = LabelMap.constant(FIXED, kept.shape)
        on_left, on_right = (constant, on_right) if kept is left else (on_left, constant)
    dim = carried[-1][0].dim if carried else None
    widths: list[np.ndarray] = []
    pair = _along(on_left, rank - 1), _along(on_right, rank - 2)
    tracker.heads.note_product(call.layer, len(pair[0]))
    if on_left.dim == rank - 1 or on_right.dim == rank - 2:
        tracker.sets.unite(pair[0], pair[1], f"it is multiplied with a tensor of fixed width in {call.operator}")
        if not (left_zero or right_zero):
            tracker.pin((left, right), f"{call.operator} sums over products that are not zero without it")
        widths.append(pair[0])
    if dim is None:
        result, zero = LabelMap.constant(FIXED, call.result.shape), False
    else:
        labels, zero = _on_result(tracker, call, (on_left, left_zero), (on_right, right_zero), dim)
        result = LabelMap.varying(labels, dim, call.result.shape)
        widths.append(labels)
    if bias is not None:
        zero = False
        _meet_bias(tracker, call, bias, result)
    tracker.set_label_map(call.result, result, zero)
    return ProductWidths(tuple(widths))


def _factor(tracker: LabelTracker, call: OperatorCall, tensor: Tensor) -> tuple[LabelMap, bool]:
    """The labels of a factor; a single channel that is multiplied with many is kept."""
    label_map, zero = tracker.label_map(tensor)
    if label_map.dim is None and label_map.labels[0] > FIXED:
        tracker.sets.pin(label_map.labels, f"its single channel scales many channels in {call.operator}")
        return LabelMap.constant(FIXED, tensor.shape), False
    return label_map, zero


def _along(label_map: LabelMap, dim: int) -> np.ndarray:
    """The labels along a dimension; one without channels has a fixed width."""
    return free_as_fixed(label_map.labels) if dim == label_map.dim else np.full(label_map.shape[dim], FIXED)


def _on_result(
    tracker: LabelTracker, call: OperatorCall, left: tuple[LabelMap, bool], right: tuple[LabelMap, bool], dim: int
) -> tuple[np.ndarray, bool]:
    """The labels of the result along a dimension, and whether it is zero when masked."""
    rank = call.result.dim()
    factors = [left] if dim == rank - 2 else [right] if dim == rank - 1 else [left, right]
    labels = [_along(label_map, dim) for label_map, _ in factors]
    if len(factors) == 2:
        tracker.sets.unite(labels[0], labels[1], f"it is multiplied with a tensor of fixed width in {call.operator}")
    return labels[0], any(zero and label_map.dim == dim for label_map, zero in factors)


def _meet_bias(tracker: LabelTracker, call: OperatorCall, bias: Tensor, result: LabelMap) -> None:
    """Unites the channels of a bias with those of the result, counted from the last dimension."""
    label_map = tracker.labels_of(bias)
    own_dim = None if result.dim is None else result.dim - len(result.shape) + bias.dim()
    reason = f"it is added to a tensor of fixed width in {call.operator}"
    if label_map.dim is not None and label_map.dim != own_dim:
        tracker.sets.pin(label_map.labels, reason)
        tracker.sets.pin(result.labels, reason)
    elif own_dim is not None and own_dim >= 0 and bias.shape[own_dim] > 1:
        tracker.sets.unite(result.labels, _along(label_map, own_dim), reason)
