"""Table of layers for the Triton kernels: where weights lie, and which kernels a layer takes.

Everything here is plain Python and torch on the CPU. It is made once for a list of weights, see ``triton.entropies``.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ..formula import Formula
from .layout import algorithm_for, filter_count, filter_layout

# The most channels that one program sorts in its registers; for longer filters all pairs are compared.
SORTED = 4096
# The bytes that the kernels of one group of layers work in, unless a single layer needs more.
WORKSPACE = 1 << 30

_LOG2E = math.log2(math.e)  # exp(-d / tau) = 2^(-d * _LOG2E / tau), and powers of 2 are what the hardware has

# The kernels of a layer: sorting, products on tensor cores between filters, or differences of all pairs.
Way = Literal["sorted", "products", "pairs"]

# The columns of the table, int64; the last three are the bits of float64. triton_parts has a function for each.
FIELDS = (
    *("data", "filters", "channels", "taps", "inner", "stride_outer", "stride_inner", "stride_channel", "stride_tap"),
    *("coordinates", "run", "stride_run", "stride_step", "flat"),
    *("first_filter", "first_number", "width", "first_tile", "strips", "first_sum", "sums"),
    *("pairs", "given", "scale"),
)


@dataclass(frozen=True)
class Layer:
    """One weight that has numbers, and how the kernels see it.

    Attributes:
        position: The position of the weight in the call.
        weight: The weight, with one stride between its taps.
        way: The kernels that it takes.
        filters: The number of filters.
        channels: The number of channels of each.
        taps: The number of taps of each channel.
        fields: The columns of the table that depend on the weight alone.
    """

    position: int
    weight: Tensor
    way: Way
    filters: int
    channels: int
    taps: int
    fields: dict[str, int]

    @property
    def coordinates(self) -> int:
        """The coordinates of a filter as a point."""
        return self.fields["coordinates"]


def layers_of(
    weights: Sequence[Tensor], formula: Formula, axes: Sequence[int], groups: Sequence[int], algorithm: str
) -> list[Layer]:
    """Describes all weights that have numbers.

    Args:
        weights: ``[N, C/groups, *kernel]`` with one stride between taps.
        formula: The formula of the entropy, of one axis.
        axes: The axis of each weight on which its filters lie.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``.

    Returns:
        One layer per weight that is not empty.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
    """
    layers = []
    for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True)):
        chosen = algorithm_for(algorithm, formula, weight, axis, group, index=i, distance=False, most_channels=SORTED)
        if not weight.numel():
            continue
        # Tensor cores have no float64 of their own on most devices, and float16 pairs are not enough for it.
        products = formula.axis == "filters" and weight.dtype != torch.float64
        way: Way = "sorted" if chosen == "sorted" else "products" if products else "pairs"
        filters = filter_count(weight, axis, group)
        layers.append(Layer(i, weight, way, filters, *_fields(weight, axis, group, formula)))
    return layers


def _fields(weight: Tensor, axis: int, groups: int, formula: Formula) -> tuple[int, int, dict[str, int]]:
    """The channels and taps of a weight, and the columns of the table that depend on it alone."""
    outer, inner, channels, taps, stride_outer, stride_inner, stride_channel, stride_tap = filter_layout(
        weight, axis, groups
    )
    one_number = formula.compress != "none"
    coordinates = channels if one_number else channels * taps
    # Coordinates are read in the order of memory: runs of the axis with the smaller stride.
    (size, step), (_, stride) = (taps, stride_tap), (channels, stride_channel)
    if taps == 1 or (channels > 1 and stride_channel < stride_tap):
        (size, step), stride = (channels, stride_channel), stride_tap
    if one_number or channels == 1 or taps == 1 or stride == size * step:
        size = coordinates
    per_load = 16 // weight.element_size()
    strides = [s for s, n in ((stride_outer, outer), (stride_inner, inner)) if n > 1]
    flat = (
        not one_number
        and (step, size) == (1, coordinates)
        and weight.data_ptr() % 16 == 0
        and all(number % per_load == 0 for number in (coordinates, *strides))
    )
    fields = {
        "data": weight.data_ptr(),
        "filters": outer * inner,
        "channels": channels,
        "taps": taps,
        "inner": inner,
        "stride_outer": stride_outer,
        "stride_inner": stride_inner,
        "stride_channel": stride_channel,
        "stride_tap": stride_tap,
        "coordinates": coordinates,
        "run": size,
        "stride_run": stride,
        "stride_step": step,
        "flat": int(flat),
    }
    return channels, taps, fields


def unit_fields(formula: Formula) -> dict[str, int]:
    """The columns that turn a mean distance into what distances are multiplied by, the same for all layers.

    Args:
        formula: The formula of the entropy.

    Returns:
        ``given``: that number if tau is given, else 0; ``scale``: that number times the mean distance. Bits of float64.
    """
    given, scale = 0.0, _LOG2E / formula.tau_scale
    if formula.entropy == "distance":  # its terms are distances as shares of their mean, for numbers near 1
        scale = 1.0
    elif formula.tau is not None:
        given = _LOG2E / formula.tau / formula.tau_scale
    return {"given": bits_of(given), "scale": bits_of(scale)}


def needs_mean(formula: Formula) -> bool:
    """Tells whether the mean distance of a layer is needed before any entropy."""
    return formula.tau is None or formula.entropy == "distance"


def bits_of(number: float) -> int:
    """The bits of a float64 as int64."""
    return int(struct.unpack("<q", struct.pack("<d", number))[0])


def table_of(layers: Sequence[Layer], formula: Formula, own: Sequence[dict[str, int]]) -> Tensor:
    """The table of a group of layers.

    Args:
        layers: The layers, in the order of their filters in the group's buffers.
        formula: The formula of the entropy.
        own: For each layer the columns that depend on its place in the group.

    Returns:
        int64 ``[layers, len(FIELDS)]`` on the CPU.
    """
    shared = unit_fields(formula)
    rows, first = [], 0
    for layer, fields in zip(layers, own, strict=True):
        row = layer.fields | shared | {"first_filter": first} | fields
        rows.append([row.get(name, 0) for name in FIELDS])
        first += layer.filters
    return torch.tensor(rows, dtype=torch.int64)


def blocks_of(layers: Iterable[tuple[int, int]], rows: int) -> Tensor:
    """Divides layers into blocks of filters, one per program.

    Args:
        layers: For each layer its position in the table and its number of filters.
        rows: The filters of a block.

    Returns:
        int32 ``[blocks, 2]``: the layer and the first filter.
    """
    parts = []
    for position, filters in layers:
        first = torch.arange(0, filters, rows, dtype=torch.int32)
        parts.append(torch.stack([torch.full_like(first, position), first], 1))
    return torch.cat(parts)


def in_groups(layers: Sequence[Layer], sizes: Sequence[int]) -> list[list[Layer]]:
    """Divides layers into groups whose kernels work in at most ``WORKSPACE`` bytes, or which have one layer.

    Args:
        layers: Layers of one way and dtype.
        sizes: For each the bytes that its kernels work in.

    Returns:
        The groups, in order.
    """
    groups: list[list[Layer]] = []
    room = -1
    for layer, size in zip(layers, sizes, strict=True):
        room -= size
        if room < 0:
            groups.append([])
            room = WORKSPACE - size
        groups[-1].append(layer)
    return groups
