"""Label rules of operators on parameters alone: how a weight that a convolution uses is computed from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ..channel_statistics import REMEDY
from ..cuts import ShapeCut
from ..label_tracker import LabelTracker
from ..labels import FIXED, FREE, LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from ..weight_labels import WeightLabels
from .cuts import blocks_of
from .elementwise import pointwise, zero_at_zeros
from .registry import RULES
from .views import permutation, rearrange

_COPIES = {"clone", "contiguous", "lift_fresh", "_to_copy", "alias", "detach"}
_RESHAPES = {"view", "_unsafe_view", "reshape", "_reshape_alias", "unsqueeze", "squeeze"}
# All but these may be anything over zeros.
_ZERO_OVER_ZEROS = {"mean", "sum", "amax", "amin", "linalg_vector_norm", "norm", "std", "var", "var_mean"}


def label_weights(tracker: LabelTracker, call: OperatorCall) -> bool:
    """Labels the result of an operator on parameters, on all its axes.

    Args:
        tracker: The labels.
        call: A call of any operator.

    Returns:
        Whether it was one that has a rule here; otherwise nothing was done.
    """
    any_known = False
    for operand in call.operands:  # of most operators the first is an activation
        if tracker.is_from_parameters(operand):
            any_known = True
        elif operand.numel() > 1 or tracker.known_label_maps([operand]):
            return False
    rule = _rule(tracker, call) if any_known else None
    if rule is None:
        return False
    rule(tracker, call)
    return True


def _rule(tracker: LabelTracker, call: OperatorCall) -> Callable[[LabelTracker, OperatorCall], None] | None:
    name, source = call.name, call.operands[0]
    is_view = tracker.parameter_view(source) is not None
    if name in _COPIES:
        return None if is_view and name in ("alias", "detach") else _copy
    if permutation(call, source.dim()) is not None:
        return None if is_view else _permute
    if name in _RESHAPES:
        return _as_channels if sum(size > 1 for size in source.shape) < 2 else _reshape
    if name == "native_batch_norm":
        return _normalise if call.args[5] and call.args[3] is None else None
    if name == "index" and any(operand.dtype in (torch.bool, torch.uint8) for operand in call.operands[1:]):
        return None
    rule = RULES.get(name)
    if name in _RULES:
        return _RULES[name]
    if torch.Tag.pointwise in call.operator.tags or (rule is not None and rule.labels is pointwise):
        return _combine
    return None


def _labels_of(tracker: LabelTracker, tensor: Tensor) -> WeightLabels:
    """The labels of an operand; a constant of one element has none."""
    return tracker.weight_labels(tensor) or WeightLabels((None,) * tensor.dim(), (False,) * tensor.dim())


def _copy(tracker: LabelTracker, call: OperatorCall) -> None:
    tracker.set_weight_labels(call.result, _labels_of(tracker, call.operands[0]))


def _permute(tracker: LabelTracker, call: OperatorCall) -> None:
    labels, order = _labels_of(tracker, call.operands[0]), permutation(call, call.operands[0].dim())
    assert order is not None
    axes, zeros = tuple(labels.axes[dim] for dim in order), tuple(labels.zeros[dim] for dim in order)
    copied = None if labels.copied_axes is None else tuple(labels.copied_axes[dim] for dim in order)
    tracker.set_weight_labels(call.result, WeightLabels(axes, zeros, labels.source, copied))


def _as_channels(tracker: LabelTracker, call: OperatorCall) -> None:
    """A view of a vector is one of channels: its sizes are compared in the trial run."""
    labels = _labels_of(tracker, call.operands[0])
    rearrange(tracker, call)
    label_map, shape = tracker.labels_of(call.result), tuple(call.result.shape)
    axes = tuple(label_map.labels if dim == label_map.dim else None for dim in range(len(shape)))
    tracker.weights.set(call.result, WeightLabels(axes, (any(labels.zeros),) * len(shape), labels.source))


def _reshape(tracker: LabelTracker, call: OperatorCall) -> None:
    """Carries over the dimensions that stay as they are; of those that are joined, one may have labels."""
    source, result = call.operands[0], call.result
    labels = _labels_of(tracker, source)
    axes: list[np.ndarray | None] = [None] * result.dim()
    zeros = [False] * result.dim()
    for before, after in blocks_of(tuple(source.shape), tuple(result.shape)):
        for old, new in _moved(tracker, labels, source, before, [result.shape[dim] for dim in after]):
            dim = after[new.dim or 0]
            axes[dim], zeros[dim] = new.labels, labels.zeros[old]
            if len(labels.labelled) == 1 and call.name in ("view", "_unsafe_view", "reshape"):
                moved = LabelMap.varying(new.labels, dim, result.shape)
                own = LabelMap.varying(labels.axes[old], old, source.shape)  # type: ignore[arg-type]
                tracker.cuts.append(ShapeCut(call.number, call.layer, call.operator, own, moved, dim, dim + 1))
    tracker.set_weight_labels(result, WeightLabels(tuple(axes), tuple(zeros), labels.source))


def _moved(
    tracker: LabelTracker, labels: WeightLabels, source: Tensor, before: Sequence[int], after: Sequence[int]
) -> list[tuple[int, LabelMap]]:
    """Where the labels of some dimensions go that become others: the dimension, and its labels there, if any."""
    carriers = [dim for dim in before if labels.axes[dim] is not None]
    if len(carriers) > 1:  # the taps of a kernel are not removed: they do not stand in the way of the channels
        taps = [dim for dim in carriers if dim >= 2 and source.dim() > 2]
        tracker.pin_weight(labels, taps)
        carriers = [dim for dim in carriers if dim not in taps]
    if len(carriers) == 1:
        vector = labels.axes[carriers[0]]
        assert vector is not None
        sizes = [source.shape[dim] for dim in before]
        moved = LabelMap.varying(vector, before.index(carriers[0]), sizes).moved_by(torch.reshape, after)
        if isinstance(moved, LabelMap) and moved.dim is not None:
            return [(carriers[0], moved)]
    tracker.pin_weight(labels, carriers)
    return []


def _expand(tracker: LabelTracker, call: OperatorCall) -> None:
    source, shape = call.operands[0], tuple(call.result.shape)
    labels, more = _labels_of(tracker, source), call.result.dim() - source.dim()
    axes: list[np.ndarray | None] = [np.full(size, FREE) for size in shape[:more]]
    for dim, size in enumerate(shape[more:]):
        axes.append(labels.axes[dim] if source.shape[dim] == size else np.full(size, FREE))
    tracker.set_weight_labels(call.result, WeightLabels(tuple(axes), (False,) * more + labels.zeros, labels.source))


def _pad(tracker: LabelTracker, call: OperatorCall) -> None:
    """Pads some of the last dimensions, such as a kernel that is added to a larger one; they are no longer narrowed."""
    labels, result = _labels_of(tracker, call.operands[0]), call.result
    padded = set(range(result.dim() - len(call.args[1]) // 2, result.dim()))
    tracker.pin_weight(labels, padded)
    axes = tuple(None if dim in padded else vector for dim, vector in enumerate(labels.axes))
    zeros = tuple(zero and not (len(call.args) > 2 and call.args[2]) for zero in labels.zeros)
    tracker.set_weight_labels(result, WeightLabels(axes, zeros, labels.source))


def _index(tracker: LabelTracker, call: OperatorCall) -> None:
    """Picks by whole numbers along some dimensions, as from a table of relative positions; the others stay."""
    labels, indices = _labels_of(tracker, call.operands[0]), call.args[1]
    picked = [dim for dim, index in enumerate(indices) if index is not None]
    tracker.pin_weight(labels, picked)
    kept = [dim for dim in range(len(labels.axes)) if dim not in picked]
    more = call.result.dim() - len(kept)
    # The dimensions of the indices stand where the picked ones did, or first, where those are not neighbours.
    first = picked[0] if picked == list(range(picked[0], picked[-1] + 1)) else 0
    order = [dim for dim in kept if dim < first] + [None] * more + [dim for dim in kept if dim >= first]
    axes = tuple(None if dim is None else labels.axes[dim] for dim in order)
    zeros = tuple(dim is not None and labels.zeros[dim] for dim in order)
    tracker.set_weight_labels(call.result, WeightLabels(axes, zeros, labels.source))


def _pick(tracker: LabelTracker, call: OperatorCall) -> None:
    """Takes some indices of a dimension, by numbers of the code: they stay. A slice of all of them changes nothing.

    What is left is not the weight of a layer, whose attributes tell the sizes of the whole.
    """
    source = call.operands[0]
    labels, dim = _labels_of(tracker, source), (call.argument("dim") or 0) % source.dim()
    if call.name == "slice" and call.result.shape == source.shape:
        tracker.set_weight_labels(call.result, labels)
        return
    tracker.pin_weight(labels, [dim])
    axes = list(labels.axes)
    if call.name == "slice":
        zeros, axes[dim] = labels.zeros, None
    else:
        zeros = tuple(zero for other, zero in enumerate(labels.zeros) if other != dim)
        del axes[dim]
    for result in call.results:
        tracker.set_weight_labels(result, WeightLabels(tuple(axes), zeros))


def _flip(tracker: LabelTracker, call: OperatorCall) -> None:
    labels, flipped = _labels_of(tracker, call.operands[0]), {dim % call.result.dim() for dim in call.args[1]}
    axes = [
        vector[::-1].copy() if vector is not None and dim in flipped else vector
        for dim, vector in enumerate(labels.axes)
    ]
    tracker.set_weight_labels(call.result, WeightLabels(tuple(axes), labels.zeros, labels.source))


def _combine(tracker: LabelTracker, call: OperatorCall) -> None:
    """Unites the indices that meet, on every axis."""
    operands = [_labels_of(tracker, operand) for operand in call.operands]
    shape = tuple(call.results[0].shape)
    offsets = [len(shape) - operand.dim() for operand in call.operands]
    axes: list[np.ndarray | None] = []
    zeros = []
    for dim, size in enumerate(shape):
        meeting = [
            (labels.axes[dim - offset], labels.zeros[dim - offset])
            if dim >= offset and operand.shape[dim - offset] == size > 1
            else None
            for operand, labels, offset in zip(call.operands, operands, offsets, strict=True)
        ]
        vector = _united(tracker, call, [met[0] for met in meeting if met is not None])
        axes.append(vector)
        flags = [met is not None and met[0] is not None and met[1] for met in meeting]
        zeros.append(vector is not None and zero_at_zeros(tracker, call, flags))
    whole = [
        labels.source
        for operand, labels in zip(call.operands, operands, strict=True)
        if labels.source and tuple(operand.shape) == shape
    ]
    whole.sort(key=tracker.is_trained, reverse=True)  # not its mask
    source = next(iter([*whole, *(labels.source for labels in operands if labels.source)]), "")
    tracker.set_weight_labels(call.results[0], WeightLabels(tuple(axes), tuple(zeros), source))


def _united(tracker: LabelTracker, call: OperatorCall, vectors: Iterable[np.ndarray | None]) -> np.ndarray | None:
    vectors = list(vectors)
    given = [vector for vector in vectors if vector is not None and (vector != FREE).any()]
    if len(given) < len(vectors) and any(vector is None for vector in vectors):
        for vector in given:
            tracker.sets.pin(vector, f"it meets a tensor of fixed width in {call.operator}")
        return None
    for vector in given[1:]:
        tracker.sets.unite(given[0], vector, f"it meets a tensor of fixed width in {call.operator}")
    return given[0] if given else next(iter(vectors), None)


def _reduce(tracker: LabelTracker, call: OperatorCall) -> None:
    """Drops dimensions, whose indices are taken together."""
    source = call.operands[0]
    labels, given = _labels_of(tracker, source), call.argument("dim")
    given = [given] if isinstance(given, int) else given
    reduced = {dim % source.dim() for dim in given} if given else set(range(source.dim()))
    _take_together(tracker, call, labels, reduced)
    kept = [dim for dim in range(source.dim()) if dim not in reduced or call.argument("keepdim")]
    axes = tuple(None if dim in reduced else labels.axes[dim] for dim in kept)
    zeros = tuple(labels.zeros[dim] and call.name in _ZERO_OVER_ZEROS for dim in kept)
    for result in call.results:
        tracker.set_weight_labels(result, WeightLabels(axes, zeros, labels.source))


def _take_together(
    tracker: LabelTracker, call: OperatorCall, labels: WeightLabels, dims: Iterable[int], *, kernel_from: int = 2
) -> int | None:
    """Statistics of a weight over some of its dimensions: over one of channels they may run over the kept ones alone.

    Args:
        tracker: The labels.
        call: The call that takes the statistics.
        labels: Those of its first operand.
        dims: The dimensions.
        kernel_from: The first dimension of the kernel, which keeps its size.

    Returns:
        The dimension whose indices may go, where norms may run over the others, or are all kept; ``None`` where
        several dimensions are taken together.
    """
    labelled = [dim for dim in dims if labels.axes[dim] is not None]
    taps = [dim for dim in labelled if dim >= kernel_from]
    channels = [dim for dim in labelled if dim not in taps]
    tracker.pin_weight(labels, taps)
    if len(channels) != 1:
        tracker.pin_weight(labels, channels)
        return None
    vector = labels.axes[channels[0]]
    assert vector is not None
    if not tracker.run_over_kept(call, channels[0], free_as_fixed(vector)):
        tracker.pin_weight(labels, channels, REMEDY)
    return channels[0]


def _contract(tracker: LabelTracker, call: OperatorCall) -> None:
    """A product with a vector, such as spectral norm has: what it sums over is taken together."""
    operands = [_labels_of(tracker, operand) for operand in call.operands]
    source = next((labels.source for labels in operands if labels.source), "")
    for labels in operands:
        tracker.pin_weight(WeightLabels(labels.axes, labels.zeros, source), [len(labels.axes) - 1])
    kept = slice(0, 1) if call.name == "mv" else slice(0, 0)
    tracker.set_weight_labels(call.result, WeightLabels(operands[0].axes[kept], operands[0].zeros[kept], source))


def _weight_norm(tracker: LabelTracker, call: OperatorCall) -> None:
    """Divides each slice of a direction by its norm, and multiplies it by a scale (Salimans & Kingma, 2016)."""
    direction, scale = (_labels_of(tracker, operand) for operand in call.args[:2])
    dim = (call.args[2] if len(call.args) > 2 else 0) % len(direction.axes)
    channel_dim = _take_together(
        tracker, call, direction, [other for other in range(len(direction.axes)) if other != dim]
    )
    own = {dim: _united(tracker, call, [direction.axes[dim], scale.axes[dim]])}
    of_weight = own if channel_dim is None else own | {channel_dim: direction.axes[channel_dim]}
    for result, vectors in zip(call.results, (of_weight, own), strict=True):  # the weight, and the norms
        axes = tuple(vectors.get(other) for other in range(result.dim()))
        zeros = tuple(other in vectors for other in range(result.dim()))
        tracker.set_weight_labels(result, WeightLabels(axes, zeros, direction.source))


def _normalise(tracker: LabelTracker, call: OperatorCall) -> None:
    """Batch norm as weight standardisation uses it: each filter is a channel, its weights the positions."""
    labels = _labels_of(tracker, call.operands[0])
    channel_dim = _take_together(tracker, call, labels, [0, 2], kernel_from=3)
    per_channel = [_labels_of(tracker, tensor) for tensor in call.args[1:3] if tensor is not None]
    vector = _united(tracker, call, [labels.axes[1], *(each.axes[0] for each in per_channel)])
    result = call.result[0]
    vectors = {1: vector} if channel_dim is None else {1: vector, channel_dim: labels.axes[channel_dim]}
    axes = tuple(vectors.get(dim) for dim in range(result.dim()))
    zero_filter = vector is not None and labels.zeros[1] and all(each.zeros[0] for each in per_channel)
    # Along the dimension of the statistics, the original's norm leaves zeros where it runs over the kept channels.
    zeros = tuple(zero_filter if dim == 1 else dim == channel_dim for dim in range(result.dim()))
    tracker.set_weight_labels(result, WeightLabels(axes, zeros, labels.source))


def _join(tracker: LabelTracker, call: OperatorCall) -> None:
    """Concatenates weights along a dimension; along the others their indices meet."""
    operands = [_labels_of(tracker, operand) for operand in call.operands]
    joined = (call.argument("dim") or 0) % call.result.dim()
    axes: list[np.ndarray | None] = []
    for dim in range(call.result.dim()):
        vectors = [labels.axes[dim] for labels in operands]
        if dim == joined:
            parts = zip(vectors, call.operands, strict=True)
            vector = np.concatenate([np.full(part.shape[dim], FIXED) if v is None else v for v, part in parts])
            axes.append(np.maximum(vector, FIXED) if (vector > FIXED).any() else None)
        else:
            axes.append(_united(tracker, call, vectors) if call.result.shape[dim] > 1 else None)
    zeros = tuple(all(labels.zeros[dim] for labels in operands) for dim in range(call.result.dim()))
    source = next((labels.source for labels in operands if labels.source), "")
    tracker.set_weight_labels(call.result, WeightLabels(tuple(axes), zeros, source))


_REDUCTIONS = (
    "mean",
    "sum",
    "amax",
    "amin",
    "linalg_vector_norm",
    "std",
    "var",
    "var_mean",
    "std_mean",
    "max",
    "min",
    "norm",
)
_RULES: dict[str, Callable[[LabelTracker, OperatorCall], None]] = {
    **dict.fromkeys(_REDUCTIONS, _reduce),
    **dict.fromkeys(("mv", "dot", "vdot"), _contract),
    "_weight_norm_interface": _weight_norm,
    "cat": _join,
    "index": _index,
    "expand": _expand,
    "flip": _flip,
    **dict.fromkeys(("slice", "select", "unbind"), _pick),
    "constant_pad_nd": _pad,
}
