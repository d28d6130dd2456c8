"""Label rules of element-wise operators, and of those that make a new tensor like another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...utils.compat import tree_map, without_dispatch_modes
from ..cuts import place_of
from ..head_choice import factor_of
from ..label_tracker import LabelTracker
from ..labels import FIXED, FREE, LabelMap
from ..operator_call import OperatorCall
from .registry import operator


def _in_place(source: Tensor, *_: Any) -> Tensor:
    return source


# torch's tag "pointwise" finds most element-wise operators without an entry (see lookup). Listed are those with a shape
# function, and those that bear no tag: the first two lines in torch 2.14, the third in torch 2.6.
@operator("relu_", "silu_", "hardtanh_", "hardswish_", shape=_in_place)
@operator(
    *("copy_", "native_dropout", "lerp_", "masked_fill", "masked_fill_"),
    *("hardswish", "mish_", "relu6_", "threshold_", "_prelu_kernel", "log_sigmoid_forward"),
    *("leaky_relu", "leaky_relu_", "elu_", "celu_", "selu_", "hardsigmoid_"),
)
def pointwise(tracker: LabelTracker, call: OperatorCall) -> None:
    """Unites the channels that meet; a map of one channel that scales many (a gate) is pinned itself."""
    if not call.results or not call.operands:
        return
    if (factor := factor_of(call.name, call.args)) is not None:
        tracker.heads.note_factor(call.layer, factor)
    shape = tuple(call.results[0].shape)
    rank = len(shape)
    label_learned_maps(tracker, call.operands, rank)
    inputs = [tracker.label_map(operand) for operand in call.operands]
    zero = zero_at_zeros(tracker, call, [flag for _, flag in inputs])
    label_maps = [label_map for label_map, _ in inputs]
    if all(label_map is label_maps[0] for label_map in label_maps) and label_maps[0].shape == shape:
        tracker.set_label_map(call.results[0], label_maps[0], zero)
        return
    # Dimensions are counted from the last, as in broadcasting.
    dims = {label_map.dim + rank - len(label_map.shape) for label_map in label_maps if label_map.dim is not None}
    if len(dims) > 1:
        tracker.pin_call(call, "combines tensors whose channels lie on different dimensions")
        return
    dim = next(iter(dims), None)
    reason = f"it meets a tensor of fixed width in {call.operator}"
    merged: np.ndarray | None = None
    for label_map in label_maps:
        labels = label_map.labels
        if dim is not None and label_map.dim is None:
            # This operand has the same label everywhere, others have channels along dim: it is broadcast over them,
            # or has a fixed width there.
            own_dim = dim - rank + len(label_map.shape)
            size = label_map.shape[own_dim] if own_dim >= 0 else 1
            if size == 1 or labels[0] != FIXED:
                tracker.sets.pin(labels, f"its single channel scales many channels in {call.operator}")
                continue
            labels = np.full(size, FIXED)
        if merged is None:
            merged = labels
        elif merged is not labels:
            tracker.sets.unite(merged, labels, reason)
            merged = np.where(merged == FREE, labels, merged) if (merged == FREE).any() else merged
    assert merged is not None
    tracker.label_results(call, merged, dim, zero)


def label_learned_maps(tracker: LabelTracker, operands: Sequence[Tensor], rank: int) -> None:
    """Labels parameters that are maps, such as position embeddings, along the channels of what they meet.

    Args:
        tracker: The labels.
        operands: What an operator combines; dimensions are counted from the last.
        rank: The number of dimensions of its result.
    """
    maps = [operand for operand in operands if tracker.is_learned_map(operand)]
    if not maps:
        return
    others = [tracker.labels_of(operand) for operand in operands if not tracker.is_learned_map(operand)]
    dims = {label_map.dim + rank - len(label_map.shape) for label_map in others if label_map.dim is not None}
    if len(dims) == 1:
        (dim,) = dims
        for learned in maps:
            tracker.set_map_dim(learned, dim - rank + learned.dim())


def zero_at_zeros(tracker: LabelTracker, call: OperatorCall, are_zero: Sequence[bool]) -> bool:
    """Whether the result of an element-wise operator is zero where some of its operands are.

    No table says which of the many element-wise operators keep zero (``relu`` does, ``sigmoid`` does not, ``add`` only
    of two zeros, ``hardtanh`` depending on its bounds). So each is computed once on single elements: 0 for an operand
    that is zero, 0.7 for another. The answers are kept by operator and plain arguments.

    Args:
        tracker: Keeps the answers.
        call: A call of the operator.
        are_zero: For each of its operands whether it is zero there.
    """
    if not any(are_zero):
        return False
    flags = iter(are_zero)

    def stand_in(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.dtype, next(flags)
        return tuple(map(stand_in, value)) if isinstance(value, list | tuple) else value

    kwargs = tuple((name, stand_in(value)) for name, value in call.kwargs.items())
    key = (call.operator, tuple(map(stand_in, call.args)), kwargs)
    try:
        answer = tracker.zero_probes.get(key)
    except TypeError:  # an argument that cannot be hashed, such as the state of a generator
        return _computed(call, are_zero)
    if answer is None:
        answer = tracker.zero_probes[key] = _computed(call, are_zero)
    return answer


def _computed(call: OperatorCall, are_zero: Sequence[bool]) -> bool:
    flags = iter(are_zero)

    def stand_in(leaf: Any) -> Any:
        return torch.full((1,), 0.0 if next(flags) else 0.7).to(leaf.dtype) if isinstance(leaf, Tensor) else leaf

    with without_dispatch_modes():
        args, kwargs = tree_map(stand_in, (call.args, call.kwargs))
        try:
            result = OperatorCall(call.operator, args, kwargs, call.operator(*args, **kwargs)).results[0]
        except (RuntimeError, IndexError):
            return False
        return bool((result == 0).all())


@operator(
    *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"),
    *("bernoulli", "bernoulli_", "uniform_", "normal_", "exponential_", "zero_"),
)
def like(tracker: LabelTracker, call: OperatorCall) -> None:
    """New values in a tensor whose extent follows another's."""
    tracker.set_label_map(call.result, tracker.labels_of(call.args[0]), call.name in ("zeros_like", "zero_"))


@operator("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided")
def of_given_size(tracker: LabelTracker, call: OperatorCall) -> None:
    """Makes a tensor of given sizes: one that lies where the channels do, and equals their number, may follow it.

    Whether it does is seen in the trial run, where the result meets the channels.
    """
    source, result = call.args[0], call.result
    label_map, shape = tracker.labels_of(source), tuple(result.shape)
    dim = None if label_map.dim is None else label_map.dim - source.dim() + len(shape)
    if dim is None or dim < 0 or shape[dim] != len(label_map.labels):
        tracker.set_label_map(result, LabelMap.constant(FREE if result.numel() == 1 else FIXED, shape), False)
        return
    tracker.set_label_map(result, LabelMap(shape, dim, label_map.labels), call.name == "new_zeros")
    tracker.believed.append((label_map.labels, place_of(call)))
