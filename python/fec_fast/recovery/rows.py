"""Rows: a layer as a linear map, from the patch of its input that an output position sees to the output there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .layer_calls import LayerCall


@dataclass(frozen=True, eq=False)
class Positions:
    """Output positions of one call of a layer.

    Attributes:
        shape: The batch and spatial dimensions of the output, ``(B, *S)``; for a linear layer all but the last.
        item: Int64 ``[rows]``: the position in the batch.
        place: Int64 ``[rows]``: the position in the other dimensions, flattened.
    """

    shape: tuple[int, ...]
    item: Tensor
    place: Tensor

    def __len__(self) -> int:
        """The number of positions."""
        return len(self.item)


def output_dims(call: LayerCall, output: Tensor) -> tuple[int, ...]:
    """The batch and spatial dimensions of a layer's output.

    Args:
        call: The call.
        output: ``[B, O, *S]`` or ``[O, *S]``; ``[..., O]`` if linear.

    Returns:
        ``(B, *S)``.
    """
    shape = tuple(output.shape)
    if call.is_linear:
        return shape[:-1] or (1,)
    return (shape[0], *shape[2:]) if output.dim() == call.weight.dim() else (1, *shape[1:])


def spread_positions(shape: tuple[int, ...], most: int, seeds: Tensor) -> Positions:
    """Output positions that are spread evenly, as many for each item of the batch.

    The positions of an item begin at a place that its seed decides and go on by the golden section, without
    repetition: they neither depend on the order of the images nor on the batch that an image is in, and they reach the
    borders as often as they should.

    Args:
        shape: ``(B, *S)``.
        most: About how many are wanted; at least one of each item if that is possible.
        seeds: Int64 ``[B]``, on the CPU.

    Returns:
        The positions, on the CPU.
    """
    items, places = shape[0], int(torch.Size(shape[1:]).numel())
    each = min(places, max(1, most // max(items, 1)))
    item = torch.arange(items)
    if items > most:  # many items, such as the regions of a detector
        item = item[(seeds.remainder(2**20).argsort(stable=True))[:most]].sort().values
    start = _mix(seeds[item]).remainder(max(places, 1))
    step = _coprime_near(0.6180339887 * places, places)
    place = (start[:, None] + step * torch.arange(each)).remainder(max(places, 1))
    return Positions(shape, item.repeat_interleave(each), place.flatten())


def _mix(seeds: Tensor) -> Tensor:
    """Numbers that look random, for numbers that may be consecutive: int64, not negative."""
    mixed = seeds * 6364136223846793005 + 1442695040888963407
    mixed = (mixed ^ (mixed >> 29)) * 3202034522624059733
    return (mixed >> 17) & (2**40 - 1)


def _coprime_near(value: float, places: int) -> int:
    step = max(1, round(value))
    while torch.gcd(torch.tensor(step), torch.tensor(max(places, 1))) != 1:
        step += 1
    return step


def input_rows(call: LayerCall, positions: Positions) -> Tensor:
    """What a layer reads at some output positions.

    Args:
        call: The call.
        positions: The positions.

    Returns:
        Dense ``[groups, rows, taps * C/groups]``, on the input's device, of its dtype, but float32 for half precision
        (autocast); taps outside the input are 0.
    """
    device = call.input.device
    item, place = positions.item.to(device), positions.place.to(device)
    if call.is_linear:
        items = call.input.reshape(len(call.input) if call.input.dim() > 1 else 1, -1, call.input.shape[-1])
        return _in_full(items[item, place]).unsqueeze(0)
    taps = _unravel(torch.arange(call.weight.shape[2:].numel(), device=device), call.weight.shape[2:])
    indices, valid = [], torch.ones(1, 1, dtype=torch.bool, device=device)
    for dim, (output, tap) in enumerate(zip(_unravel(place, positions.shape[1:]), taps, strict=True)):
        step, begin, size = call.stride[dim], call.padding[dim], call.input.shape[dim + 2]
        offset = call.dilation[dim] * tap - begin
        if call.transposed:
            reached = output[:, None] - offset
            index = reached.div(step, rounding_mode="floor")
            valid = valid & (index * step == reached)
        else:
            index = output[:, None] * step + offset
        valid = valid & (index >= 0) & (index < size)
        indices.append(index.clamp(0, size - 1))
    rows = call.input.movedim(1, -1)[(item[:, None], *indices)]  # [rows, taps, C]
    rows = _in_full(rows).masked_fill(~valid[..., None], 0)
    grouped = rows.reshape(len(rows), rows.shape[1], call.groups, -1).permute(2, 0, 1, 3)
    return grouped.reshape(call.groups, len(rows), -1)


def output_rows(output: Tensor, positions: Positions, channels: Tensor | None = None, *, is_linear: bool) -> Tensor:
    """A layer's output at some positions.

    Args:
        output: What the layer returned.
        positions: The positions.
        channels: Int64: which output channels; ``None`` for all.
        is_linear: Whether the layer is a linear operation, whose channels are the last dimension.

    Returns:
        ``[rows, channels]``, in float32 for half precision (autocast).
    """
    item, place = positions.item.to(output.device), positions.place.to(output.device)
    if is_linear:
        rows = output.reshape(positions.shape[0], -1, output.shape[-1])[item, place]
    else:
        dense = output if output.dim() == len(positions.shape) + 1 else output.unsqueeze(0)
        rows = dense.movedim(1, -1)[(item, *_unravel(place, positions.shape[1:]))]
    return _in_full(rows if channels is None else rows[:, channels.to(output.device)])


def weight_matrices(call: LayerCall, weight: Tensor) -> Tensor:
    """A layer's weight as matrices that :func:`input_rows` are multiplied by.

    Args:
        call: The call.
        weight: Its weight, or a tensor of the same shape.

    Returns:
        ``[groups, taps * C/groups, O/groups]``.
    """
    if call.is_linear:
        return weight.T.unsqueeze(0)
    kernel, groups = weight.shape[2:].numel(), call.groups
    if call.transposed:  # [C, O/g, k] -> [g, C/g, O/g, k] -> [g, k, C/g, O/g]
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], kernel).permute(0, 3, 1, 2)
    else:  # [O, C/g, k] -> [g, O/g, C/g, k] -> [g, k, C/g, O/g]
        split = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], kernel).permute(0, 3, 2, 1)
    return split.reshape(groups, kernel * split.shape[2], split.shape[3])


def weight_from_matrices(call: LayerCall, matrices: Tensor) -> Tensor:
    """The inverse of :func:`weight_matrices`.

    Args:
        call: The call.
        matrices: ``[groups, taps * C/groups, O/groups]``.

    Returns:
        A tensor of the weight's shape.
    """
    if call.is_linear:
        return matrices[0].T
    shape, groups = call.weight.shape, call.groups
    kernel = shape[2:].numel()
    split = matrices.reshape(groups, kernel, -1, matrices.shape[-1])
    order = (0, 2, 3, 1) if call.transposed else (0, 3, 2, 1)
    return split.permute(order).reshape(shape)


def _in_full(rows: Tensor) -> Tensor:
    return rows.float() if rows.dtype in (torch.float16, torch.bfloat16) else rows


def _unravel(index: Tensor, shape: Sequence[int]) -> list[Tensor]:
    """The indices in every dimension of indices into a flattened array."""
    indices = []
    for size in reversed(shape):
        indices.append(index.remainder(size))
        index = index.div(size, rounding_mode="floor")
    return indices[::-1]
