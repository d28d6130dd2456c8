"""Label rules of operators that rearrange elements without changing them: copies, views, concatenations."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from ..cuts import ShapeCut
from ..held_sizes import HeldSize
from ..label_tracker import LabelTracker
from ..labels import LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from ..weight_labels import ParameterView
from .cuts import dims_of_channels, spread, spread_and_join
from .elementwise import label_learned_maps
from .registry import operator


@operator("clone", "contiguous", "lift_fresh", "_to_copy", "alias", "detach")
def copy(tracker: LabelTracker, call: OperatorCall) -> None:
    """Passes the labels on; the result of ``alias`` and ``detach`` is still the parameter where the source is one."""
    view = tracker.parameter_view(call.args[0])
    if view is not None and call.name in ("alias", "detach"):
        tracker.set_parameter_view(call.result, view)
        return
    tracker.set_label_map(call.result, *tracker.label_map(call.args[0]))


@operator(
    *("view", "_unsafe_view", "reshape", "permute", "transpose", "t", "unsqueeze", "squeeze", "expand", "flip"),
    "_reshape_alias",
)
def rearrange(tracker: LabelTracker, call: OperatorCall) -> None:
    """Applies the same rearrangement to the labels."""
    source = call.args[0]
    order = permutation(call, source.dim())
    view = tracker.parameter_view(source)
    if view is not None and order is not None:
        # A permuted weight, as linear layers use it: still a weight, whose axes are known.
        axes = tuple(view.axes[dim] for dim in order)
        tracker.set_parameter_view(call.result, ParameterView(view.name, view.tensor, axes))
        return
    label_map, zero = tracker.label_map(source)
    if call.name in ("view", "_unsafe_view", "reshape", "_reshape_alias"):
        _reshape(tracker, call, label_map, zero)
        return
    if label_map.dim is None:
        tracker.label_results(call, label_map.labels, None, zero)
        return
    if order is not None:
        tracker.label_results(call, label_map.labels, order.index(label_map.dim), zero)
        return
    # Other operators (an expansion, a flip) are applied to the labels.
    moved = label_map.moved_by(call.operator, *call.args[1:], **call.kwargs)
    assert isinstance(moved, LabelMap)  # the labels still vary along one dimension at most
    tracker.set_label_map(call.result, moved, zero)


@operator("repeat")
def repeat(tracker: LabelTracker, call: OperatorCall) -> None:
    """Repeats the labels; a repeated channel is removed with each of its copies."""
    label_map, zero = tracker.label_map(call.args[0])
    moved = label_map.moved_by(call.operator, call.args[1])
    assert isinstance(moved, LabelMap)  # the labels still vary along one dimension at most
    tracker.set_label_map(call.result, moved, zero)


@operator("view.dtype")
def reinterpret(tracker: LabelTracker, call: OperatorCall) -> None:
    """Reads the memory as another dtype; the elements are others where its size differs."""
    label_map, zero = tracker.label_map(call.args[0])
    if label_map.shape != tuple(call.result.shape):
        tracker.pin_call(call, "reads the memory as elements of another size")
        return
    tracker.set_label_map(call.result, label_map, zero)


def _reshape(tracker: LabelTracker, call: OperatorCall, label_map: LabelMap, zero: bool) -> None:
    """Labels the result of a reshape, and leaves its sizes for the trial run to compare."""
    shape = tuple(call.result.shape)
    dim, dims = _unchanged_dim(label_map, shape), dims_of_channels(label_map, shape)
    moved: LabelMap | list[int]
    if label_map.dim is None:
        moved = LabelMap(shape, None, label_map.labels)
    elif dim is not None:
        moved = LabelMap.varying(label_map.labels, dim, shape)
    elif dims is not None:
        open_dims = [dim for dim, size in enumerate(call.args[1]) if size == -1]
        moved = spread(tracker, call, label_map, dims, shape, open_dims)
    else:  # a flatten, for instance
        moved = label_map.moved_by(torch.reshape, shape)
        if isinstance(moved, list):
            joined = spread_and_join(tracker, call, label_map)
            if joined is None:
                reason = f"mixes channels with other dimensions: {list(label_map.shape)} to {list(shape)}"
                tracker.pin_call(call, reason)
                return
            moved, dims = joined
    tracker.set_label_map(call.result, moved, zero)
    if moved.dim is not None and label_map.dim is not None:
        first, end = dims or (moved.dim, moved.dim + 1)
        of_inputs = tracker.known_label_maps([given for given in call.module_inputs if isinstance(given, torch.Tensor)])
        inputs = tuple(each.labels for each in of_inputs if each.dim is not None)
        cut = ShapeCut(call.number, call.layer, call.operator, label_map, moved, first, end, inputs)
        tracker.cuts.append(cut)
        _tie_to_queries(tracker, call.layer, inputs, moved)


def _tie_to_queries(tracker: LabelTracker, layer: str, inputs: tuple[np.ndarray, ...], moved: LabelMap) -> None:
    """Ties what torch's attention shapes to the width of its queries, and notes the attributes that it checks.

    Args:
        tracker: The labels.
        layer: The module in whose code a reshape ran.
        inputs: The channels of what it was called with.
        moved: The labels of the result.
    """
    module = tracker.modules[layer]
    if not isinstance(module, nn.MultiheadAttention) or not inputs or len(inputs[0]) != module.embed_dim:
        return
    labels, heads = free_as_fixed(moved.labels), np.unique(moved.labels)
    if len(labels) == module.embed_dim:
        reason = (
            f"nn.MultiheadAttention {layer} is as wide as its queries, which keep their width; attention that is "
            "written with layers of its own can be narrower"
        )
        tracker.sets.unite(free_as_fixed(inputs[0]), labels, reason)
        tracker.hold(HeldSize(layer, "embed_dim", module.embed_dim, (inputs[0],)))
    elif moved.dim == len(moved.shape) - 2 and len(heads) == module.num_heads:  # [positions, images * heads, width]
        tracker.hold(HeldSize(layer, "num_heads", module.num_heads, (heads,)))


def _unchanged_dim(label_map: LabelMap, shape: tuple[int, ...]) -> int | None:
    """The dimension of a reshaped tensor that has the channels as they were, if one has: the common case, done fast."""
    if label_map.dim is None:
        return None
    before, size = math.prod(label_map.shape[: label_map.dim]), label_map.shape[label_map.dim]
    for dim, length in enumerate(shape):
        if length == size and before > 0 and math.prod(shape[:dim]) == before:
            return dim
    return None


def permutation(call: OperatorCall, rank: int) -> list[int] | None:
    """The permutation that an operator makes of the dimensions.

    Args:
        call: A call of any operator.
        rank: The number of dimensions of its first operand.

    Returns:
        For each dimension of the result that of the operand; ``None`` for another operator.
    """
    order = list(range(rank))
    if call.name == "t":
        return order[::-1]
    if call.name == "transpose":
        a, b = call.args[1] % rank, call.args[2] % rank
        order[a], order[b] = order[b], order[a]
        return order
    if call.name == "permute":
        return [dim % rank for dim in call.args[1]]
    return None


@operator("cat", "stack")
def join(tracker: LabelTracker, call: OperatorCall) -> None:
    """Concatenates labels; a tensor without channels of its own becomes fixed along the joined dimension."""
    sources = [tensor for tensor in call.args[0] if tensor.numel() > 0]
    joined_dim = (call.argument("dim") or 0) % call.result.dim()
    if call.name == "cat":
        label_learned_maps(tracker, sources, call.result.dim())
    inputs = [tracker.label_map(source) for source in sources]
    zero = all(flag for _, flag in inputs)
    label_maps = [_unsqueezed(each, joined_dim) if call.name == "stack" else each for each, _ in inputs]
    other_dims = {each.dim for each in label_maps if each.dim not in (None, joined_dim)}
    on_joined_dim = any(each.dim == joined_dim for each in label_maps)
    if not label_maps or len(other_dims) > 1 or (other_dims and on_joined_dim):
        tracker.pin_call(call, "joins tensors whose channels lie on different dimensions")
        return
    if not other_dims:
        labels = np.concatenate([free_as_fixed(each.along(joined_dim)) for each in label_maps])
        tracker.set_label_map(call.result, LabelMap.compact(labels, joined_dim, call.result.shape), zero)
        return
    (channel_dim,) = (dim for dim in other_dims if dim is not None)
    labels = free_as_fixed(label_maps[0].along(channel_dim))
    for each in label_maps[1:]:
        reason = f"it is joined to a tensor of fixed width in {call.operator}"
        tracker.sets.unite(labels, free_as_fixed(each.along(channel_dim)), reason)
    tracker.set_label_map(call.result, LabelMap.varying(labels, channel_dim, call.result.shape), zero)


def _unsqueezed(label_map: LabelMap, new_dim: int) -> LabelMap:
    """The labels of a tensor with another dimension, of size 1."""
    dim = label_map.dim if label_map.dim is None or label_map.dim < new_dim else label_map.dim + 1
    return LabelMap((*label_map.shape[:new_dim], 1, *label_map.shape[new_dim:]), dim, label_map.labels)
