"""Backend ``torch``: the formula by torch's operators in float64, for installations without the compiled kernels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from .. import reference
from ..formula import Formula
from .layout import algorithm_for, filter_count

_BLOCK = 1 << 22  # distances that are made at a time: 32 MiB
_KEEP = 1 << 25  # distances of one layer that are kept until tau is known: 256 MiB
_FEW = 24  # coordinates of which all differences take no longer than a product


def entropies(
    weights: Sequence[Tensor],
    formula: Formula,
    *,
    axes: Sequence[int],
    groups: Sequence[int],
    algorithm: str = "auto",
    in_float64: bool = False,
) -> tuple[list[Tensor], int]:
    """Computes the entropies of all weights, one after another.

    Args:
        weights: CPU tensors ``[N, C/groups, *kernel]`` of a supported dtype; they are read, never changed.
        formula: The formula of the entropy, of one axis.
        axes: The axis of each weight on which its filters lie, 0 or 1.
        groups: The groups of each weight's layer.
        algorithm: ``"auto"``, ``"sorted"`` or ``"pairwise"``, as for the kernels.
        in_float64: Whether weights of narrower dtypes get distances as exact as those of float64: slower.

    Returns:
        For each weight a float64 tensor ``[filters]`` in nats, and the position of the first weight with a value that
        is not finite, or -1. With such a weight there are no results.

    Raises:
        FormulaError: ``"sorted"`` is asked for and not possible.
    """
    results = []
    for i, (weight, axis, group) in enumerate(zip(weights, axes, groups, strict=True)):
        chosen = algorithm_for(algorithm, formula, weight, axis, group, index=i)
        if not bool(weight.detach().isfinite().all()):
            return [], i
        # The entropy of distances has sums that no scan makes.
        in_order = chosen == "sorted" and formula.entropy != "distance"
        results.append(_entropy(weight, formula, axis, group, in_order, in_float64))
    return results, -1


def sum_of_distances(weight: Tensor, formula: Formula, axis: int) -> float:
    """Adds the distances between the channels of each filter. Divided by the number of the layer's pairs it is tau.

    Args:
        weight: ``[N, C, *kernel]`` without groups on axis 1, on any device. Filters are read in blocks.
        formula: The formula, of the channel axis.
        axis: The axis of the weight on which its filters lie, 0 or 1.

    Returns:
        The sum, in the units of the weights; NaN or infinite where a weight is.
    """
    if not weight.numel():
        return 0.0
    total = 0.0
    for filters in torch.split(weight.detach(), max(1, _BLOCK * weight.shape[axis] // weight.numel()), axis):
        points, exponent = _scaled_points(filters, formula, axis, 1)
        if points.shape[-1] == 1:
            total += _sum_in_order(_in_order(points).diff(dim=0)) * 2.0**exponent
        else:
            total += sum(float(d.sum()) for _, _, d in _blocks(points, exact=True)) * 2.0**exponent
    return total


def _entropy(weight: Tensor, formula: Formula, axis: int, groups: int, in_order: bool, in_float64: bool) -> Tensor:
    """The entropies of one weight, ``[filters]``."""
    if not weight.numel():
        return torch.zeros(filter_count(weight, axis, groups), dtype=torch.float64)
    points, exponent = _scaled_points(weight, formula, axis, groups)
    if formula.axis == "filters":
        points = points.reshape(1, points.shape[0], -1)
    given = None if formula.tau is None else formula.tau * 2.0**-exponent
    if in_order:
        return _from_sorted(points, formula, given)
    return _from_pairs(points, formula, given, exact=in_float64 or weight.dtype == torch.float64)


def _scaled_points(weight: Tensor, formula: Formula, axis: int, groups: int) -> tuple[Tensor, int]:
    """The points ``[filters, channels, coordinates]`` divided by a power of two, and its exponent.

    So no square overflows or vanishes; entropies do not depend on the scale.
    """
    filters = reference.filters_of(weight, axis=axis, groups=groups)
    exponent = max(-1000, min(1000, math.frexp(float(filters.abs().max()))[1]))
    return reference.compressed(filters * 2.0**-exponent, formula.compress), exponent


def _in_order(points: Tensor) -> Tensor:
    """The numbers of each filter in ascending order, ``[channels, filters]``: a step of a scan is one row."""
    return points[..., 0].sort(dim=-1).values.T.contiguous()


def _sum_in_order(gaps: Tensor) -> float:
    """The sum of all distances of sorted numbers: a gap lies between k channels and the others, in both directions."""
    channels = len(gaps) + 1
    k = torch.arange(1, channels, dtype=torch.float64, device=gaps.device)
    return 2 * float((gaps.sum(-1) * k * (channels - k)).sum())


def _from_sorted(points: Tensor, formula: Formula, tau: float | None) -> Tensor:
    """The entropies of filters with one number per channel, ``[filters, channels, 1]``, by two scans when sorted."""
    ordered = _in_order(points)
    channels, filters = ordered.shape
    gaps = ordered.diff(dim=0)
    if tau is None:
        tau = _sum_in_order(gaps) / (channels**2 * filters)
    tau *= formula.tau_scale
    if tau == 0:
        return torch.zeros(filters, dtype=torch.float64)
    steps = gaps / tau
    factors = torch.exp(-steps)
    # Of each channel: the sum of exp(-d/tau), itself included, and the sum of d/tau exp(-d/tau).
    total, weighted = torch.ones_like(ordered), torch.zeros_like(ordered)
    for order in (range(1, channels), range(channels - 2, -1, -1)):
        below = torch.zeros(filters, dtype=torch.float64)
        moment = torch.zeros_like(below)
        for i in order:
            gap = i - 1 if order.step == 1 else i
            below = below + 1
            moment = factors[gap] * (moment + steps[gap] * below)
            below = factors[gap] * below
            total[i] += below
            weighted[i] += moment
    if formula.entropy == "similarity":
        return (-torch.log(total / channels)).mean(0).clamp_min(0)
    return (total.log() + weighted / total).mean(0).clamp_min(0)


def _from_pairs(points: Tensor, formula: Formula, tau: float | None, *, exact: bool) -> Tensor:
    """The entropies of points ``[sets, points, coordinates]``: a set per filter, or one of all filters."""
    sets, count, _ = points.shape
    kept: list[tuple[slice, slice, Tensor]] | None = None
    if tau is None or formula.entropy == "distance":
        if sets * count**2 <= _KEEP:
            kept = list(_blocks(points, exact))
        total = sum(float(d.sum()) for _, _, d in kept or _blocks(points, exact))
        tau = total / (sets * count**2)
    tau *= formula.tau_scale
    rows = torch.zeros(sets, count, dtype=torch.float64)
    for some, these, d in kept or _blocks(points, exact):
        rows[some, these] = reference.row_entropies(d, formula.entropy, tau).clamp_min(0)
    return rows[0] if formula.axis == "filters" else rows.mean(-1)


def _blocks(points: Tensor, exact: bool) -> Iterator[tuple[slice, slice, Tensor]]:
    """The distances of some points of some sets to all points of theirs, ``[sets, some, points]``."""
    sets, count, _ = points.shape
    set_step, row_step = max(1, _BLOCK // count**2), max(1, min(count, _BLOCK // count))
    for first in range(0, sets, set_step):
        some = slice(first, first + set_step)
        for start in range(0, count, row_step):
            these = slice(start, start + row_step)
            yield some, these, _distances(points[some], these, exact)


def _distances(points: Tensor, these: slice, exact: bool) -> Tensor:
    if exact or len(points) > 1 or points.shape[-1] < _FEW:
        return torch.cdist(points[:, these], points, compute_mode="donot_use_mm_for_euclid_dist")
    # One product instead of all differences, in a tenth of the time: a pair of equal points is 1e-8 of their length
    # apart then, where float32 weights allow 1e-7. From the first point: a common offset would cost digits.
    moved = points[0] - points[0, :1]
    sizes = moved.square().sum(-1)
    squares = torch.addmm(sizes[these, None] + sizes, moved[these], moved.T, alpha=-2).clamp_min_(0)
    squares.diagonal(these.start).zero_()
    return squares.sqrt_()[None]
