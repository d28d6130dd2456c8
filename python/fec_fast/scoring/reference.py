"""Reference implementation of the entropy in plain float64 torch; every backend is tested against it.

It is written to be read: one line of code per line of the formula, whole matrices of distances in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..utils.precision import in_float64
from .formula import Formula


def filters_of(weight: Tensor, *, axis: int = 0, groups: int = 1) -> Tensor:
    """Views a weight as filters, channels and taps.

    Args:
        weight: ``[N, C/groups, *kernel]``, a convolution's or a linear layer's.
        axis: 0: filter ``i`` is ``weight[i]``. 1: filter ``q * (C/groups) + l`` is what reads input channel ``l`` of
            group ``q``: ``weight[q*N/groups:(q+1)*N/groups, l]``.
        groups: The groups of the convolution; they matter for axis 1 only.

    Returns:
        ``[filters, channels, taps]`` in float64.
    """
    w = in_float64(weight.detach())
    w = w.reshape(w.shape[0], w.shape[1], -1)
    if axis == 0:
        return w
    n, c, taps = w.shape
    # The filters of an input channel are in one group only: [q, N/q, C/q, taps] -> [q, C/q, N/q, taps].
    return w.reshape(groups, n // groups, c, taps).transpose(1, 2).reshape(groups * c, n // groups, taps)


def compressed(filters: Tensor, compress: str) -> Tensor:
    """Turns each channel into a point.

    Args:
        filters: ``[filters, channels, taps]``.
        compress: ``"rms"``, ``"absmean"``, ``"mean"`` or ``"none"``.

    Returns:
        ``[filters, channels, 1]``, or the filters themselves for ``"none"``.
    """
    if compress == "none":
        return filters
    if compress == "rms":
        return filters.square().mean(-1, keepdim=True).sqrt()
    return (filters.abs() if compress == "absmean" else filters).mean(-1, keepdim=True)


def distances(weight: Tensor, formula: Formula, *, axis: int = 0, groups: int = 1) -> Tensor:
    """Computes the Euclidean distances between the points that a formula compares.

    Args:
        weight: ``[N, C/groups, *kernel]`` of any floating dtype.
        formula: A formula of one axis; its ``compress`` and ``axis`` are used.
        axis: The axis of the weight on which the filters lie, 0 or 1; see :func:`filters_of`.
        groups: The groups of the convolution.

    Returns:
        ``[filters, channels, channels]`` for ``axis="channels"``, ``[1, filters, filters]`` for ``axis="filters"``;
        float64, in the units of the weights.
    """
    points = compressed(filters_of(weight, axis=axis, groups=groups), formula.compress)
    if formula.axis == "filters":
        points = points.reshape(1, points.shape[0], -1)
    # Differences, not |a|^2 + |b|^2 - 2ab: that loses the digits of points that are close to each other.
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def row_entropies(d: Tensor, entropy: str, tau: float) -> Tensor:
    """Computes the entropy of every row of distances.

    Args:
        d: ``[..., points]``, float64: distances of one point to all.
        entropy: ``"similarity"``, ``"softmax"`` or ``"distance"``.
        tau: The distance at which similarity has fallen to 1/e, 0 where all points are equal.

    Returns:
        ``[...]``, float64, nats.
    """
    if d.shape[-1] == 0 or tau == 0:  # no points, or all of them equal: 0 by definition
        return d.new_zeros(d.shape[:-1])
    if entropy == "similarity":
        return -torch.exp(-d / tau).mean(-1).log()
    if entropy == "softmax":
        p = torch.softmax(-d / tau, dim=-1)
    else:
        total = d.sum(-1, keepdim=True)
        p = d / torch.where(total > 0, total, 1)  # a row of equal points has no distribution; its entropy is 0
    terms: Tensor = torch.special.xlogy(p, p)
    return -terms.sum(-1)


def entropy(weight: Tensor, formula: Formula, *, axis: int = 0, groups: int = 1) -> Tensor:
    """Computes the entropy of every filter of one weight.

    Args:
        weight: ``[N, C/groups, *kernel]`` of any floating dtype.
        formula: The choices; see :class:`fec_fast.Formula` for the formulas and their sources.
        axis: The axis of the weight on which the filters lie, 0 or 1; see :func:`filters_of`.
        groups: The groups of the convolution.

    Returns:
        ``[filters]``, float64, nats.
    """
    if formula.axis == "both":
        channels, filters = (entropy(weight, part, axis=axis, groups=groups) for part in formula.parts())
        return channels + filters
    d = distances(weight, formula, axis=axis, groups=groups)
    measured = float(d.mean()) if d.numel() else 0.0
    tau = (measured if formula.tau is None else formula.tau) * formula.tau_scale
    rows = row_entropies(d, formula.entropy, tau)
    if formula.axis == "filters":
        return rows[0]
    return rows.mean(-1) if rows.shape[-1] else rows.new_zeros(rows.shape[0])


def tolerance(dtype: torch.dtype, points: int) -> float:
    """Returns how far a backend may be from :func:`entropy`: one rule, by dtype and number of points.

    ``5e-6 max(1, ln points)`` for float32, float16 and bfloat16, which all backends compute in float32;
    ``1e-13 max(1, ln points)`` for float64. ``ln points`` is the maximum of an entropy. The rule holds where weights
    are not much larger than their distances (tau of the order of the largest weight), as in trained networks. For
    ``axis="both"`` the tolerances of the two axes add up, as the entropies do.

    Args:
        dtype: The dtype of the weight.
        points: The number of points that are compared: the channels of a filter, or the filters of a layer.

    Returns:
        The tolerance in nats.
    """
    return (1e-13 if dtype == torch.float64 else 5e-6) * max(1.0, math.log(max(points, 1)))
