"""Label rules of operators that divide channels: split, slice, gated units, channel shuffle."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ...utils.compat import without_dispatch_modes
from ...utils.errors import list_some
from ..cuts import PartsCut, parts_of, place_of, slice_bounds
from ..held_sizes import held_numbers
from ..label_tracker import LabelTracker
from ..labels import LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from .registry import operator


@operator(
    *("slice", "select", "split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes", "unbind", "roll"),
)
def take(tracker: LabelTracker, call: OperatorCall) -> None:
    """Cuts or shifts along a dimension; the parts of the channels shrink where their sizes may follow the width."""
    source = call.args[0]
    label_map, zero = tracker.label_map(source)
    if label_map.dim is None:
        tracker.label_results(call, label_map.labels, None, zero)
        return
    rolled_dims = call.argument("dims")
    dims = [dim % source.dim() for dim in (rolled_dims if rolled_dims is not None else [call.argument("dim")])]
    # roll without dims flattens the tensor first, which runs over the channels too; a slice of everything cuts nothing.
    cuts = call.results[0].shape != source.shape or rolled_dims is not None
    if label_map.dim in dims or not dims:
        problem = _divide(tracker, call, label_map)
        if problem is not None and cuts:
            tracker.pin(
                source,
                f"{place_of(call)} cuts its channels at fixed positions{problem}",
                f"{place_of(call)} cuts channels at fixed positions{problem}: they keep their width",
            )
    with without_dispatch_modes():
        labels = call.operator(label_map.tensor(), *call.args[1:], **call.kwargs)
    for piece, of_piece in zip(call.results, [labels] if isinstance(labels, Tensor) else labels, strict=True):
        moved = LabelMap.from_tensor(of_piece)
        assert isinstance(moved, LabelMap)  # the labels still vary along one dimension at most
        tracker.set_label_map(piece, moved, zero)


def _divide(tracker: LabelTracker, call: OperatorCall, label_map: LabelMap) -> str | None:
    """Notes a split or slice of channels, and unites the channels that its parts lose together.

    Equal parts lose the channels at the same positions. Other parts are divided into blocks of the largest size that
    divides every part, and all blocks lose the same positions, so that the sizes keep their proportions. Where the
    module holds the sizes in attributes, parts of different sizes are independent: each number changes by itself.

    Returns:
        ``None``; or the rest of the reason why the channels must be kept, which may be ``""``.
    """
    if call.name in ("select", "unbind", "roll") or (call.name == "slice" and call.argument("step") != 1):
        return ""
    assert label_map.dim is not None
    width = len(label_map.labels)
    if call.name == "slice":
        parts: tuple[tuple[int, int], ...] = (slice_bounds(call.args, width),)
    else:
        parts = parts_of(piece.shape[label_map.dim] for piece in call.results)
    cut = PartsCut(call.number, call.layer, call.operator, label_map, parts)
    tracker.cuts.append(cut)
    reason = f"it is cut off together with channels of fixed width by {call.operator}"
    sizes = np.diff([0, *cut.borders, width]).tolist()
    held = held_numbers(tracker.modules[call.layer])
    if len(set(sizes)) > 1 and sum(size not in held for size in sizes) <= 1:
        for start, end in parts_of(sizes):
            if end - start in held:
                tracker.unite_held((call.layer, end - start), label_map.labels[start:end], reason)
        return None
    block = math.gcd(*sizes)
    if block == 1 < width:
        return f": the parts have {list_some([*map(str, sizes)])} channels"
    unite_blocks(tracker, label_map.labels, block, reason)
    return None


@operator("glu")
def gate(tracker: LabelTracker, call: OperatorCall) -> None:
    """Multiplies one half by the sigmoid of the other: both lose the channels at the same positions."""
    label_map, zero = tracker.label_map(call.args[0])
    labels, dim = label_map.labels, label_map.dim
    if dim is not None and dim == call.argument("dim") % len(label_map.shape):
        labels = unite_blocks(tracker, labels, len(labels) // 2, f"{call.operator} gates channels of fixed width by it")
    tracker.label_results(call, labels, dim, zero)


@operator("channel_shuffle", "native_channel_shuffle")
def shuffle_channels(tracker: LabelTracker, call: OperatorCall) -> None:
    """Interleaves groups of channels: every group loses the same positions."""
    label_map, zero = tracker.label_map(call.args[0])
    labels, dim, groups = label_map.labels, label_map.dim, call.args[1]
    if dim not in (None, 1):
        tracker.pin_call(call, "works across channels here")
        return
    if dim is not None:
        reason = f"it is shuffled with channels of fixed width in {call.operator}"
        labels = np.repeat(unite_blocks(tracker, labels, len(labels) // groups, reason), groups)
    tracker.label_results(call, labels, dim, zero)


def spread(
    tracker: LabelTracker,
    call: OperatorCall,
    label_map: LabelMap,
    dims: tuple[int, int],
    shape: Sequence[int],
    open_dims: Sequence[int],
) -> LabelMap:
    """Divides the channels in a reshape over several dimensions: one of them shrinks, the others keep their size.

    It is the dimension along which the channels repeat in all others (images that were counted among the channels),
    or the one whose size the code leaves open (-1), or else the longest: the numbers of groups, heads, halves and
    pixels are smaller than those of channels. Of equally long ones it is the last, because groups and heads come before
    what they consist of; where a vector becomes a map, it is the first, because channels come before pixels. Channels
    at the same position of that dimension are removed together. In a module that loses whole heads
    (:mod:`fec_fast.graph.head_choice`) it is the dimension of heads.

    Args:
        tracker: The labels.
        call: The call of a reshape.
        label_map: The labels of its source, which vary along a dimension.
        dims: What :func:`dims_of_channels` returns.
        shape: The shape of the result; where it joins dimensions, the shape before they are joined.
        open_dims: Its dimensions whose size the code leaves open.

    Returns:
        The labels of a tensor of that shape.
    """
    first, end = dims
    sizes = tuple(shape[first:end])
    longest = [dim for dim, size in enumerate(sizes) if size == max(sizes)]
    is_vector = len(label_map.shape) == 2
    usual = next((dim - first for dim in open_dims if first <= dim < end), longest[0 if is_vector else -1])
    grid = free_as_fixed(label_map.labels).reshape(sizes)
    repeated = [dim for dim in range(len(sizes)) if _repeats_beside(grid, dim)]
    dim = repeated[0] if repeated else tracker.heads.dim(call.layer, sizes, usual)
    # A row for each position of the dimension: the channels that lie there.
    rows = np.moveaxis(grid, dim, 0).reshape(sizes[dim], -1)
    reason = f"it is divided together with channels of fixed width by {call.operator}"
    tracker.sets.unite(np.repeat(rows[:, 0], rows.shape[1]), rows.reshape(-1), reason)
    tracker.heads.note_view(call.layer, sizes, dim, rows[:, 0])
    return LabelMap.varying(rows[:, 0], first + dim, shape)


def spread_and_join(
    tracker: LabelTracker, call: OperatorCall, label_map: LabelMap
) -> tuple[LabelMap, tuple[int, int]] | None:
    """Divides the channels in a reshape that also joins some of their parts with other dimensions.

    An example is ``[batch, heads * width, positions]`` to ``[batch * heads, width, positions]``.

    Args:
        tracker: The labels.
        call: The call of a reshape.
        label_map: The labels of its source, which vary along a dimension.

    Returns:
        The labels of the result, with the first dimension that the channels are part of and the one behind the last;
        ``None``, with nothing changed, where the sizes have no common factors.
    """
    shape, channel_dim = tuple(call.result.shape), label_map.dim
    for before, after in blocks_of(label_map.shape, shape):
        if channel_dim not in before:
            continue
        factors = _common_factors([label_map.shape[dim] for dim in before], [shape[dim] for dim in after])
        if factors is None:
            return None
        of_source, of_result, sizes = factors
        assert channel_dim is not None
        own = of_source[before.index(channel_dim)]
        between = (*label_map.shape[: before[0]], *sizes, *label_map.shape[before[-1] + 1 :])
        first = before[0]
        open_dims = [
            first + factor
            for dim, given in zip(after, [call.args[1][dim] for dim in after], strict=True)
            for factor in of_result[after.index(dim)]
            if given == -1 and factor in own
        ]
        dims = first + own[0], first + own[-1] + 1
        moved = spread(tracker, call, label_map, dims, between, open_dims).moved_by(torch.reshape, shape)
        assert isinstance(moved, LabelMap)  # the labels vary along one factor, which is part of one dimension
        return moved, (after[0], after[-1] + 1)
    return None


def blocks_of(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The dimensions of two shapes in blocks of equal extent, each as small as possible.

    Args:
        before: A shape.
        after: Another shape of as many elements.

    Returns:
        For each block its dimensions in the one shape and in the other.
    """
    if math.prod(before) != math.prod(after) or not math.prod(before):
        return [([*range(len(before))], [*range(len(after))])]
    blocks, old, new = [], 0, 0
    while old < len(before) or new < len(after):
        first, second = [old], [new]
        while (left := math.prod(before[first[0] : old])) != (right := math.prod(after[second[0] : new])) or (
            old == first[0] and new == second[0]
        ):
            if (left <= right and old < len(before)) or new == len(after):
                old += 1
            else:
                new += 1
        blocks.append(([*range(first[0], old)], [*range(second[0], new)]))
    return blocks


def _common_factors(
    before: Sequence[int], after: Sequence[int]
) -> tuple[list[list[int]], list[list[int]], list[int]] | None:
    """The dimensions between two shapes of equal extent: each dimension of both is a product of some of them.

    Returns:
        For each dimension of the first shape its factors, for each of the second, and the sizes of the factors;
        ``None`` where there are no such factors.
    """
    ends = [np.cumprod(sizes).tolist() for sizes in (before, after)]
    bounds = sorted({1, *ends[0], *ends[1]})
    if any(larger % smaller for smaller, larger in pairwise(bounds)):
        return None
    sizes = [larger // smaller for smaller, larger in pairwise(bounds)]
    runs = [
        [[at for at, (low, high) in enumerate(pairwise(bounds)) if start <= low and high <= end] for start, end in each]
        for each in (pairwise([1, *ends[0]]), pairwise([1, *ends[1]]))
    ]
    return runs[0], runs[1], sizes


def _repeats_beside(grid: np.ndarray, axis: int) -> bool:
    """Whether labels vary along one axis, and along no other."""
    others = tuple(other for other in range(grid.ndim) if other != axis)
    least = grid.min(others, keepdims=True)
    return bool((grid == least).all() and (least != least.flat[0]).any())


def dims_of_channels(label_map: LabelMap, shape: Sequence[int]) -> tuple[int, int] | None:
    """The dimensions of a reshaped tensor that the channels alone are spread over.

    Args:
        label_map: The labels before.
        shape: The shape afterwards.

    Returns:
        The first of them and the one behind the last; ``None`` where there are none.
    """
    if label_map.dim is None or 0 in shape:
        return None
    before, width = math.prod(label_map.shape[: label_map.dim]), label_map.shape[label_map.dim]
    for first in range(len(shape)):
        if math.prod(shape[:first]) == before and shape[first] > 1:
            for end in range(first + 1, len(shape) + 1):
                if math.prod(shape[first:end]) == width:
                    return first, end
    return None


def unite_blocks(tracker: LabelTracker, labels: np.ndarray, block: int, reason: str) -> np.ndarray:
    """Unites the channels at the same position of every block.

    Args:
        tracker: The labels.
        labels: The channels, int64; FREE counts as fixed.
        block: The number of channels in a block; it divides their number.
        reason: Why the channels must be kept where some of them have a fixed width.

    Returns:
        The labels of the first block.
    """
    labels = free_as_fixed(labels)
    tracker.sets.unite(labels[np.arange(len(labels)) % block], labels, reason)
    return labels[:block]
