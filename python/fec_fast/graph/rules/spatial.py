"""Rules of operators that pick, sample, pool or pad positions."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..held_sizes import HeldSize
from ..label_tracker import LabelTracker
from ..labels import FIXED, FREE, LabelMap, free_as_fixed
from ..operator_call import OperatorCall
from .registry import DataDependentError, operator


@operator(
    *("max_pool2d_with_indices", "avg_pool1d", "avg_pool2d", "avg_pool3d", "max_pool3d_with_indices"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "upsample_bilinear2d"),
    *("upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "reflection_pad2d", "replication_pad2d"),
)
def window(tracker: LabelTracker, call: OperatorCall) -> None:
    """Works inside each channel's own map."""
    label_map, zero = tracker.label_map(call.args[0])
    # The digit in the name says over how many of the last dimensions the windows lie.
    spatial_dims = next(int(char) for char in reversed(call.name.removesuffix("_with_indices")) if char.isdigit())
    if label_map.dim is not None and label_map.dim >= len(label_map.shape) - spatial_dims:
        tracker.pin_call(call, "works across channels here")
        return
    tracker.label_results(call, label_map.labels, label_map.dim, zero)


@operator("grid_sampler_2d", "grid_sampler_3d", "torchvision::roi_align", "torchvision::roi_pool")
def sample(tracker: LabelTracker, call: OperatorCall) -> None:
    """Samples each channel's own map at positions that other tensors hold."""
    label_map, zero = tracker.label_map(call.args[0])
    if call.result.numel() == 0:
        tracker.pin_call(call, "has an empty result on these inputs")
        return
    if label_map.dim not in (None, 1):
        tracker.pin_call(call, "samples across channels here")
        return
    tracker.pin(
        call.args[1:],
        f"it holds the sampling positions of {call.operator}",
        f"{call.operator} samples at positions from other tensors, which keep their width",
    )
    tracker.label_results(call, label_map.labels, label_map.dim, zero)


@operator("pixel_shuffle", "pixel_unshuffle")
def shuffle_pixels(tracker: LabelTracker, call: OperatorCall) -> None:
    """Trades channels for pixels: the channels that make one map, or are made of one, are removed together."""
    label_map, zero = tracker.label_map(call.args[0])
    labels, dim = label_map.labels, label_map.dim
    if dim is None:
        tracker.label_results(call, labels, None, zero)
        return
    if dim != len(label_map.shape) - 3:
        tracker.pin_call(call, "works across channels here")
        return
    channels_per_map = call.args[1] ** 2
    if call.name == "pixel_unshuffle":
        tracker.label_results(call, np.repeat(labels, channels_per_map), dim, zero)
        return
    firsts = np.repeat(labels[::channels_per_map], channels_per_map)
    tracker.sets.unite(firsts, labels, f"it is shuffled with channels of fixed width in {call.operator}")
    tracker.label_results(call, labels[::channels_per_map], dim, zero)


def _index_shape(source: Tensor, indices: list[Tensor | None]) -> Tensor:
    """By indices the shape is theirs; by a mask it depends on the mask's values."""
    if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices):
        raise DataDependentError("aten.index.Tensor")
    result: Tensor = torch.ops.aten.index.Tensor(source, indices)
    return result


@operator("index.Tensor", shape=_index_shape)
def index(tracker: LabelTracker, call: OperatorCall) -> None:
    """Picks positions by tensors of indices; channels picked by number must all be kept."""
    source, indices = call.args
    if tracker.is_learned_map(source):  # a table: its rows are picked, its channels stay
        picked_dims = {at for at, given in enumerate(indices) if given is not None}
        left = [at for at, size in enumerate(source.shape) if size > 1 and at not in picked_dims]
        if len(left) == 1:
            tracker.set_map_dim(source, left[0])
    label_map, zero = tracker.label_map(source)
    labels, dim = label_map.labels, label_map.dim
    next_dim = 0  # the dimension of the source that the next index is for; a mask is for as many as it has
    for picked in indices:
        is_mask = isinstance(picked, Tensor) and picked.dtype in (torch.bool, torch.uint8)
        dims = picked.dim() if is_mask else 1
        if picked is not None and dim is not None and next_dim <= dim < next_dim + dims:
            tracker.pin_call(call, "picks channels by their numbers")
            return
        next_dim += dims
    for picked in indices:
        if picked is not None:
            tracker.pin(
                picked,
                f"it holds the indices of {call.operator}",
                f"{call.operator} picks by a tensor of indices, which keeps its width",
            )
    if dim is None:
        tracker.label_results(call, labels, None, zero)
        return
    if call.result.numel() == 0:
        # Nothing was picked, so the labels cannot be followed by picking.
        tracker.label_results(call, np.array([FIXED]), None, False)
        tracker.pin(source, f"it feeds {call.operator}, which has an empty result on these inputs")
        return
    moved = label_map.moved_by(call.operator, indices)
    assert isinstance(moved, LabelMap)  # the labels still vary along one dimension at most
    tracker.set_label_map(call.result, moved, zero)


@operator("embedding")
def embedding(tracker: LabelTracker, call: OperatorCall) -> None:
    """Picks rows of a table by their numbers: the channels of the table are those of the result."""
    table, numbers = call.args[:2]
    if tracker.is_learned_map(table):
        tracker.set_map_dim(table, 1)
    tracker.pin(numbers, f"it holds the indices of {call.operator}")
    label_map, zero = tracker.label_map(table)
    if label_map.dim == 0:
        tracker.pin_call(call, "picks channels by their numbers")
        return
    if label_map.dim is None:
        tracker.label_results(call, label_map.labels, None, zero)
        return
    labels, module = free_as_fixed(label_map.labels), tracker.modules[call.layer]
    if isinstance(module, nn.Embedding) and module.embedding_dim == len(labels):
        tracker.hold(HeldSize(call.layer, "embedding_dim", module.embedding_dim, (labels,)))
    tracker.label_results(call, labels, call.result.dim() - 1, zero)


@operator("constant_pad_nd")
def pad(tracker: LabelTracker, call: OperatorCall) -> None:
    """Pads; the number of channels that are added stands in the model's code, so they must be kept."""
    label_map, zero = tracker.label_map(call.args[0])
    labels, dim = label_map.labels, label_map.dim
    value = call.argument("value") or 0
    amounts = list(call.args[1])  # before and after the last dimension, then the last but one, ...
    for position in range(len(amounts) // 2):
        padded_dim = len(label_map.shape) - 1 - position
        before, after = amounts[2 * position : 2 * position + 2]
        if dim == padded_dim:
            if min(before, after) < 0:
                tracker.pin_call(call, "crops channels by a fixed number")
                return
            labels = np.pad(labels, (before, after), constant_values=FIXED)
        elif dim is None and labels[0] not in (FREE, FIXED) and before + after and label_map.shape[padded_dim] == 1:
            tracker.pin_call(call, "pads a single channel")
            return
    tracker.label_results(call, labels, dim, zero and value == 0)
