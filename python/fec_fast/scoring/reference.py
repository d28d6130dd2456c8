"""The entropy in plain float64 torch, written to be read; every backend is tested against it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .formula import Formula


def filters_of(weight: Tensor, *, axis: int = 0, groups: int = 1) -> Tensor:
    """Views a weight as filters, channels and taps.

    Args:
        weight: ``[N, C/groups, *kernel]``, a convolution's or a linear layer's.
        axis: 0: filter ``i`` is ``weight[i]``. 1: filter ``q * (C/groups) + l`` is what reads input channel ``l`` of
            group ``q``: ``weight[q*N/groups:(q+1)*N/groups, l]``.
        groups: The groups of the convolution; only axis 1 depends on them.

    Returns:
        ``[filters, channels, taps]`` in float64.
    """
    w = weight.detach().to(torch.float64)
    w = w.reshape(w.shape[0], w.shape[1], -1)
    if axis == 0:
        return w
    n, c, taps = w.shape
    return w.reshape(groups, n // groups, c, taps).transpose(1, 2).reshape(groups * c, n // groups, taps)


def compressed(filters: Tensor, compress: str) -> Tensor:
    """Makes a point of each channel.

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
    """Euclidean distances between the points that a formula compares.

    Args:
        weight: As in :func:`filters_of`.
        formula: Its ``compress`` and ``axis`` count; of one axis.
        axis: As in :func:`filters_of`.
        groups: As in :func:`filters_of`.

    Returns:
        ``[filters, channels, channels]`` for ``axis="channels"``, ``[1, filters, filters]`` for ``axis="filters"``;
        float64, in the units of the weights.
    """
    points = compressed(filters_of(weight, axis=axis, groups=groups), formula.compress)
    if formula.axis == "filters":
        points = points.reshape(1, points.shape[0], -1)
    return torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")


def entropy(weight: Tensor, formula: Formula, *, axis: int = 0, groups: int = 1) -> Tensor:
    """The entropy of every filter of one weight.

    Args:
        weight: As in :func:`filters_of`, of any floating dtype.
        formula: What to compute.
        axis: The weight's axis on which the filters lie.
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
    if d.shape[-1] == 0 or tau == 0:  # no points, or all alike
        rows = d.new_zeros(d.shape[:-1])
    elif formula.entropy == "similarity":
        rows = -torch.exp(-d / tau).mean(-1).log()
    else:
        if formula.entropy == "softmax":
            p = torch.softmax(-d / tau, dim=-1)
        else:
            total = d.sum(-1, keepdim=True)
            p = d / torch.where(total > 0, total, 1)
        rows = -torch.special.xlogy(p, p).sum(-1)
    if formula.axis == "filters":
        return rows[0]
    return rows.mean(-1) if rows.shape[-1] else rows.new_zeros(rows.shape[0])


def tolerance(dtype: torch.dtype, points: int) -> float:
    """How far from :func:`entropy` a backend may be: the one rule, by dtype and length.

    ``5e-6 max(1, ln points)`` for float32, float16 and bfloat16, which all backends compute in float32, and
    ``1e-13 max(1, ln points)`` for float64; ``ln points`` is the largest that an entropy can be. It holds for weights
    that are not much larger than they are apart (tau of the order of the largest weight), as those of networks are.
    Those of ``axis="both"`` add up, as the entropies do.

    Args:
        dtype: Of the weight.
        points: What is compared with one another: the channels of a filter, or the filters of a layer.

    Returns:
        Nats.
    """
    return (1e-13 if dtype == torch.float64 else 5e-6) * max(1.0, math.log(max(points, 1)))
