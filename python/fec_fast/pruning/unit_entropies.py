"""Entropies of units: the filters, or the slices, of a layer that belong to one unit are one point among the others.

A unit may hold several filters or slices of a layer: the 49 columns of a linear layer that read what a channel became
in a flatten, or the filters at one position in every group. They are kept or removed together, so the entropy between
filters compares units: two units are near if all their weights are. The entropy among the channels inside a filter is
that of each filter; a unit has the mean of its filters'.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..scoring import ops
from ..scoring.backends.registry import ResolvedBackend
from ..scoring.formula import Formula
from ..scoring.reference import compressed
from ..utils.compat import storage_id
from ..utils.precision import in_float64
from .layer_sides import UnitsOfSide, as_filters

# Comparing each of N units with all others takes N^2 products of vectors, which would take longer than everything else
# in large layers. What the estimate by parts costs in accuracy: docs/formula.md.
MOST_COMPARED = 256
PART = 128
# Weights in one call of the kernels: on a GPU they are copied to float64.
_MOST_ELEMENTS = 2**25
# Relative to the largest weight. Sums over taps are rounded at 1e-16 of it, differences between weights are above 1e-8.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class WeightSide:
    """One side of a weight.

    Attributes:
        weight: ``[N, C/groups, *kernel]``, of a supported dtype.
        axis: The axis that its filters lie on: 0, or 1 for the slices that read each input channel.
        groups: The groups of the layer.
        units: The units that the filters or slices belong to.
        layer: The name of the layer, for messages.
    """

    weight: Tensor
    axis: int
    groups: int
    units: UnitsOfSide
    layer: str


def entropies(
    sides: Sequence[WeightSide],
    formula: Formula,
    backend: ResolvedBackend,
    *,
    most_compared: int = MOST_COMPARED,
    part: int = PART,
) -> list[np.ndarray]:
    """Computes the entropy of every unit of some sides.

    Args:
        sides: The sides.
        formula: Of the entropies. ``axis="filters"`` compares units, ``"channels"`` the channels inside each filter,
            ``"both"`` adds them.
        backend: What computes them.
        most_compared: Up to so many units of one filter in a side, each is compared with all others. Of units that hold
            several filters, up to ``part``: their weights are as many times longer.
        part: With more, each is compared with so many, at least 2, and its similarity entropy is an estimate: the mean
            similarity to all units by that to a sample of them. The Shannon entropies are not estimated.

    Returns:
        For each side float64 ``[units]``, in nats; NaN for a unit that there is nothing to compare with: a filter of a
        single channel, or the only unit that holds as many filters.

    Raises:
        WeightError: A weight is NaN or infinite, or cannot be read; the layer is named.
    """
    found = [np.full(len(side.units.units), np.nan) for side in sides]
    for one in formula.parts():
        jobs = _channel_jobs(sides) if one.axis == "channels" else _filter_jobs(sides, one, most_compared, part)
        together: list[_Job] = []
        elements = 0
        for job in jobs:
            together.append(job)
            elements += sum(weight.numel() for weight in job.weights)
            if job.is_copy or elements > _MOST_ELEMENTS:  # computed at once, so that copies do not pile up in memory
                _compute(together, sides, one, backend, found)
                together, elements = [], 0
        _compute(together, sides, one, backend, found)
    return found


@dataclass(frozen=True, eq=False)
class _Job:
    """Filters that are compared with one another: a side, a class of its units, or parts of it.

    Attributes:
        side: The position of the side.
        positions: For each part, the positions of its units in the side.
        weights: For each part, the weight to be scored.
        axis: The axis of its filters.
        groups: Its groups.
        number: The number of units of all parts together.
        is_copy: Whether the weights are copies.
    """

    side: int
    positions: Sequence[np.ndarray | slice]
    weights: Sequence[Tensor]
    axis: int
    groups: int
    number: int
    is_copy: bool = False


def _channel_jobs(sides: Sequence[WeightSide]) -> Iterator[_Job]:
    """Each side as it is, where its filters have more than one channel."""
    for number, side in enumerate(sides):
        channels = side.weight.shape[1] if side.axis == 0 else side.weight.shape[0] // side.groups
        if channels > 1:
            yield _Job(number, [slice(None)], [side.weight], side.axis, side.groups, 0)


def _filter_jobs(sides: Sequence[WeightSide], formula: Formula, most_compared: int, part: int) -> Iterator[_Job]:
    """The units of each side that hold equally many filters, in parts if there are many."""
    in_parts = formula.entropy == "similarity"
    for number, side in enumerate(sides):
        most = most_compared if side.units.position is None else min(most_compared, part)
        if side.units.position is None and not (in_parts and len(side.units.units) > most):
            if len(side.units.units) > 1:
                yield _Job(number, [slice(None)], [side.weight], side.axis, side.groups, len(side.units.units))
            continue
        for positions, filters in _classes(side, formula):
            units = len(positions)
            if units < 2:
                continue
            parts = -(-units // part) if in_parts and units > most else 1
            if parts > 1 and filters.stride(0) < filters.stride(1):
                filters = filters.contiguous()  # the kernels read slices that are not neighbours much more slowly
            is_copy = storage_id(filters) != storage_id(side.weight)
            # Every k-th unit: where several layers are concatenated, each part has some of all.
            rows, weights = [positions[k::parts] for k in range(parts)], [filters[k::parts] for k in range(parts)]
            yield _Job(number, rows, weights, 0, 1, units, is_copy)


def _classes(side: WeightSide, formula: Formula) -> Iterator[tuple[np.ndarray, Tensor]]:
    """The units of a side by the number of filters they hold.

    Points of different lengths have no distance, so units that hold different numbers are not compared.

    Yields:
        The positions of the units, and their weights ``[units, channels, *kernel]``, a view where that is possible.
    """
    filters = as_filters(side.weight, side.axis, side.groups)
    if side.units.position is None:
        yield np.arange(len(filters)), filters
        return
    order = np.argsort(side.units.position, kind="stable")
    counts = np.bincount(side.units.position)
    first = np.cumsum(counts) - counts
    for count in np.unique(counts).tolist():
        positions = np.flatnonzero(counts == count)
        rows = order[first[positions][:, None] + np.arange(count)]
        yield positions, _joined(filters, rows, by_channel=formula.compress != "none")


def _joined(filters: Tensor, rows: np.ndarray, *, by_channel: bool) -> Tensor:
    """Filters of one unit as one filter.

    Args:
        filters: ``[filters, channels, *kernel]``.
        rows: The filters of each unit, int64 ``[units, filters per unit]``.
        by_channel: Whether the second dimension has to be that of the channels.

    Returns:
        ``[units, channels, filters per unit * taps]``: what is read from each channel. Or, where only that is a view,
        ``[units, filters per unit, channels * taps]``, if that will do; the distances between units are the same.
    """
    units, count = rows.shape
    channels, taps = filters.shape[1], math.prod(filters.shape[2:])
    filters = filters.flatten(2) if filters.dim() > 2 else filters[..., None]
    start = int(rows[0, 0])
    steps = [int(rows[min(1, units - 1), 0]) - start, int(rows[0, min(1, count - 1)]) - start]
    if min(steps) >= 0 and np.array_equal(
        rows, start + steps[0] * np.arange(units)[:, None] + steps[1] * np.arange(count)
    ):
        stride, inner = filters.stride(0), filters.stride()[1:]
        filters = filters.as_strided(
            (units, count, channels, taps),
            (steps[0] * stride, steps[1] * stride, *inner),
            filters.storage_offset() + start * stride,
        )
    else:
        filters = filters[torch.from_numpy(rows).to(filters.device)]
    shapes = (filters.transpose(1, 2), (units, channels, count * taps)), (filters, (units, count, channels * taps))
    for view, shape in shapes[:1] if by_channel else shapes:
        with contextlib.suppress(RuntimeError):  # the last two dimensions cannot be one without a copy
            return view.view(shape)
    return shapes[0][0].reshape(shapes[0][1])


def _compute(
    jobs: Sequence[_Job],
    sides: Sequence[WeightSide],
    formula: Formula,
    backend: ResolvedBackend,
    found: Sequence[np.ndarray],
) -> None:
    """Adds the entropies of some jobs to those found for their units, in one call of the backend.

    In float64: after rounding in float32, backends and instruction sets would rank units of near scores differently.
    """
    weights = [weight for job in jobs for weight in job.weights]
    results = iter(
        ops.entropies(
            weights,
            formula,
            axes=[job.axis for job in jobs for _ in job.weights],
            groups=[job.groups for job in jobs for _ in job.weights],
            names=[sides[job.side].layer for job in jobs for _ in job.weights],
            backend=backend,
            in_float64=True,
        )
    )
    scored = iter(weights)
    for job in jobs:
        for positions in job.positions:
            values = next(results).numpy()
            if _are_equal(next(scored), job, formula):
                values = np.zeros_like(values)
            if formula.axis == "channels":
                values = sides[job.side].units.mean(values)
            elif len(values) < job.number:
                values = _among(job.number, values)
            before = found[job.side][positions]
            found[job.side][positions] = np.where(np.isnan(before), values, before + values)


def _are_equal(weight: Tensor, job: _Job, formula: Formula) -> bool:
    """Whether all points of a weight are equal but for the rounding of their compression: taps in another order.

    Their mean distance, which tau is, would be that rounding, and the entropies noise of full size, another on every
    instruction set. Of equal points the entropies are 0.
    """
    if formula.compress == "none" or formula.tau is not None or not weight.numel():
        return False
    filters = as_filters(weight, job.axis, job.groups)
    for part in (filters[:2, :2], filters):  # nearly always the first four points tell
        points = compressed(in_float64(part.reshape(*part.shape[:2], -1)), formula.compress)
        compared = 0 if formula.axis == "filters" else 1
        spread = points.amax(compared) - points.amin(compared)
        if float(spread.max()) > _ROUNDING * float(part.abs().max()):
            return False
    return True


def _among(number: int, entropies: np.ndarray) -> np.ndarray:
    """What the similarity entropies within a part are among all units, if the part is like them.

    Args:
        number: The number of all units.
        entropies: Those within the part, float64 ``[units of the part]``.

    Returns:
        Float64 of the same shape. The mean similarity counts a unit's similarity to itself, 1, once among the units of
        the part, and once among all.
    """
    part = len(entropies)
    to_others = (part * np.exp(-entropies) - 1) / (part - 1)
    return np.asarray(-np.log((1 + (number - 1) * to_others) / number))
