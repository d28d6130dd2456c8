"""How removal is spread over the layers: in which order the units of a model's coupled sets go.

A policy gives each set a rising row of *pressures*, one a unit: at which pressure its first unit goes, its second, and
so on (which units these are, the criterion says). The pressures are compared across sets and mean nothing else;
:mod:`fec_fast.solver` raises the pressure until a budget is met.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from .coupling import CoupledSet
from .criteria import most_entropy, side_entropies
from .formula import Formula
from .sizes import Sizes
from .trace import Trace

NAMES = ("uniform", "entropy", "global", "sensitivity")


def uniform(sets: Sequence[CoupledSet]) -> list[np.ndarray]:
    """The same share of every set.

    Args:
        sets: The coupled sets.

    Returns:
        For each set, ``[units]``.
    """
    return [np.arange(1, len(one.units) + 1) / len(one.units) for one in sets]


def weighted(sets: Sequence[CoupledSet], weights: Sequence[float]) -> list[np.ndarray]:
    """Sets shrink at rates of their own: under the pressure ``p`` a set keeps the share ``exp(-weight * p)``.

    Args:
        sets: The coupled sets.
        weights: The rate of each, not negative; a set with 0 keeps all.

    Returns:
        For each set, ``[units]``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        rows = [
            -np.log1p(-share) / weight if weight > 0 else np.full(len(share), np.inf)
            for share, weight in zip(uniform(sets), weights, strict=True)
        ]
    return rows


def profile(sets: Sequence[CoupledSet], shares: Sequence[float]) -> list[np.ndarray]:
    """The caller's ratios as a profile: they are reached together, at the pressure 1, and exceeded together after it.

    Args:
        sets: The coupled sets.
        shares: The ratio of each, in [0, 1).

    Returns:
        For each set, ``[units]``.
    """
    return weighted(sets, [-float(np.log1p(-share)) for share in shares])


def entropy(
    sets: Sequence[CoupledSet],
    traced: Trace,
    weights: Mapping[str, Tensor],
    formula: Formula,
    *,
    share: float = 1.0,
    spread: float = 1.0,
) -> list[np.ndarray]:
    stats = entropy_statistics(sets, traced, weights, formula)
    rates = []
    known = np.array([s for s in stats if s is not None])
    mean = known.mean(0) if len(known) else np.ones(2)
    for s in stats:
        if s is None:
            rates.append(1.0)
            continue
        rates.append(float((mean[0] / s[0]) ** share * (s[1] / mean[1]) ** spread))
    return weighted(sets, rates)


def entropy_statistics(sets, traced, weights, formula):
    jobs, vectors = side_entropies(traced, weights, formula, (False,))
    by_layer = {}
    for (use, consumer), vector in zip(jobs, vectors, strict=True):
        by_layer[use.layer] = (float(vector.mean()) / most_entropy(use, consumer, formula), float(vector.std(correction=0) / vector.mean()))
    out = []
    for one in sets:
        found = [by_layer[layer] for layer in one.layers if layer in by_layer]
        out.append(tuple(np.mean(found, 0)) if found else None)
    return out


def ranking(scores: Sequence[Tensor], costs: Sequence[float] | None = None, lamp: bool = True) -> list[np.ndarray]:
    rows = []
    for position, values in enumerate(scores):
        rising = np.sort(values.numpy())
        if lamp:
            left = np.cumsum(rising[::-1])[::-1]
            rising = rising / left
        if costs is not None:
            rising = rising / costs[position]
        rows.append(np.maximum.accumulate(rising))
    return rows
