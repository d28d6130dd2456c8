"""The rule of operators without an entry: what a trial of the operator shows of its channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from ..cuts import place_of
from ..label_tracker import LabelTracker
from ..labels import FIXED, FREE, LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from ..operator_trial import Axis, WithinChannels, has_no_effect, try_operator, written_by

_LONGEST_KEY = 4096  # elements of an operand without channels whose values are compared with those of earlier calls


def act_as_tried(tracker: LabelTracker, call: OperatorCall) -> None:
    """Labels the results by a trial; where it does not show that the operator acts within each channel, pins."""
    if has_no_effect(call):
        return
    inputs = [tracker.label_map(operand) for operand in call.operands]
    axes = [_axis(*of_input) for of_input in inputs]
    if not any(axis is not None and (axis.labels > FIXED).any() for axis in axes):
        tracker.pin_call(call, "has no rule")
        return
    acts: WithinChannels | str = ""
    for chosen in _choices(tracker, call, axes):
        acts = _tried(tracker, call, chosen)
        if isinstance(acts, WithinChannels):
            if _label(tracker, call, chosen, acts):
                note = f"{call.operator} has no rule: it was tried on drawn numbers, and acts within each channel"
                tracker.notes[note] = None
                return
            acts = "writes to a tensor with other channels"
    tracker.pin_call(call, f"has no rule and, tried on drawn numbers, {acts}")


def _axis(label_map: LabelMap, zero: bool) -> Axis | None:
    return None if label_map.dim is None else Axis(label_map.dim, free_as_fixed(label_map.labels), zero)


def _choices(tracker: LabelTracker, call: OperatorCall, axes: list[Axis | None]) -> list[list[Axis | None]]:
    """Which operands to try as those with channels.

    Parameters of one axis may have channels, or be a table. Tensors that were made with as many channels (an index that
    is expanded to them, zeros to write to) may follow them; whether they do is seen in the trial run.
    """
    is_parameter = [tracker.parameter_view(operand) is not None for operand in call.operands]
    others = [None if parameter else axis for parameter, axis in zip(is_parameter, axes, strict=True)]
    widths = {len(axis.labels) for axis in others if axis is not None}
    if not widths:
        return [axes]
    fitting = [axis if axis is None or len(axis.labels) in widths else None for axis in axes]
    first = next(axis for axis in others if axis is not None)
    follower = Axis(first.dim, first.labels, False)
    following = [
        follower if axis is None and not parameter and _may_follow(call, operand, first) else axis
        for operand, axis, parameter in zip(call.operands, fitting, is_parameter, strict=True)
    ]
    choices = [fitting]
    choices += [choice for choice in (others, following) if choice != fitting]
    return choices


def _may_follow(call: OperatorCall, constant: Tensor, axis: Axis) -> bool:
    """Whether a tensor without channels has the same values for each, so that its extent may follow their number."""
    dim, width = axis.dim, len(axis.labels)
    if dim >= constant.dim() or constant.shape[dim] != width:
        return False
    if any(constant is result for result in call.results):
        return True  # it was written to, and its values from before are not known
    if constant.stride(dim) == 0 or constant.is_meta:
        return constant.stride(dim) == 0
    return bool((constant == constant.narrow(dim, 0, 1)).all())


def _tried(tracker: LabelTracker, call: OperatorCall, axes: Sequence[Axis | None]) -> WithinChannels | str:
    """What a trial shows; calls that are alike share one."""
    labels = [axis.labels for axis in axes if axis is not None]
    ranks = iter(
        np.split(
            np.unique(np.concatenate([[FIXED], *labels]), return_inverse=True)[1].reshape(-1)[1:],
            [*np.cumsum([len(vector) for vector in labels])[:-1].tolist()],
        )
    )
    of_operand = iter(axes)

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            axis = next(of_operand)
            if axis is not None:
                content: Any = axis.dim, axis.zero, next(ranks).tobytes()
            else:
                content = value.detach().cpu().numpy().tobytes() if value.numel() <= _LONGEST_KEY else object()
            return tuple(value.shape), value.dtype, content
        return tuple(map(plain, value)) if isinstance(value, list | tuple) else (type(value), value)

    try:
        key = (call.operator, tuple(map(plain, call.args)), tuple((n, plain(v)) for n, v in call.kwargs.items()))
        hash(key)
    except (TypeError, RuntimeError):  # an argument that has no hash, or a tensor that NumPy does not know
        return try_operator(call, axes)
    found = tracker.operator_trials.get(key)
    if found is None:
        found = tracker.operator_trials[key] = try_operator(call, axes)
    return found


def _label(tracker: LabelTracker, call: OperatorCall, axes: Sequence[Axis | None], acts: WithinChannels) -> bool:
    """Gives the results their labels, and unites those of the operands that meet.

    Returns:
        Whether that was possible; if not, nothing has changed.
    """
    vectors = [axis.labels for axis in axes if axis is not None]
    at_positions = vectors[0][acts.firsts]
    results = [*call.results, *written_by(call)]
    label_maps = []
    for tensor, found in zip(results, acts.results, strict=True):
        shape = tuple(tensor.shape)
        if found is None:
            label_map = LabelMap.constant(FREE if tensor.numel() == 1 else FIXED, shape)
        else:
            label_map = LabelMap.compact(at_positions[found.positions], found.dim, shape)
        label_maps.append(label_map)
        if any(tensor is operand for operand in call.operands):  # views of it have the labels from before
            before = tracker.labels_of(tensor)
            is_new = before.dim is None and before.labels[0] <= FIXED and _has_its_own_memory(tracker, tensor)
            if not is_new and (before.dim != label_map.dim or not np.array_equal(before.labels, label_map.labels)):
                return False
    for vector in vectors:
        tracker.sets.unite(at_positions[acts.positions], vector, f"it meets a tensor of fixed width in {call.operator}")
    for operand, axis in zip(call.operands, axes, strict=True):
        if axis is None:  # a tensor of one channel, or a parameter
            tracker.pin(operand, f"{call.operator}, which has no rule, combines it with channels of other tensors")
    for tensor, label_map, found in zip(results, label_maps, acts.results, strict=True):
        tracker.set_label_map(tensor, label_map, found is not None and found.zero)
    tracker.believed.append((np.concatenate(vectors), place_of(call)))
    return True


def _has_its_own_memory(tracker: LabelTracker, tensor: Tensor) -> bool:
    """Whether a tensor is no parameter and shows all of its memory."""
    shows_all = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return shows_all and tracker.parameter_view(tensor) is None
