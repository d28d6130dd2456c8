"""How removal is spread over the layers: in which order the units of a model's coupled sets go.

A policy gives each set a rising row of *pressures*, one a unit: at which pressure its first unit goes, its second, and
so on (which units these are, the criterion says). The pressures are compared across sets and mean nothing else;
:mod:`fec_fast.pruning.allocation.solver` raises the pressure until a budget is met.

``"entropy"`` and ``"global"`` weigh what is lost with a unit against the square root of its *price*, what the budget
saves by it. A knapsack would take the full price, but what is lost is estimated too roughly for that: of the powers 0,
1/4, 1/2 and 1, and of four scales of tau, the two constants below left the most of two CIFAR networks (docs/study.md,
"The constants of entropy").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from torch import Tensor

from ...graph.groups import CoupledChannels
from ...scoring.formula import Formula
from ..context import Problem
from ..unit_scores import side_entropies

NAMES = ("uniform", "entropy", "global", "sensitivity")
DEFAULT = "entropy"  # by docs/study.md

# At tau = the mean distance nearly every layer has e effectively distinct filters; at a quarter of it, layers differ.
TAU_SCALE = 0.25
PRICE_POWER = 0.5


def uniform(sets: Sequence[CoupledChannels]) -> list[np.ndarray]:
    """The same share of every set.

    Args:
        sets: The coupled sets.

    Returns:
        For each set, ``[units]``.
    """
    return [np.arange(1, len(one.units) + 1) / len(one.units) for one in sets]


def profile(sets: Sequence[CoupledChannels], shares: Sequence[float]) -> list[np.ndarray]:
    """The caller's ratios as a profile: under the pressure ``p`` a set with the ratio ``r`` keeps ``(1 - r) ** p``.

    Args:
        sets: The coupled sets.
        shares: The ratio of each, in [0, 1), which it reaches at the pressure 1; a set with 0 keeps all.

    Returns:
        For each set, ``[units]``.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        return [
            np.log1p(-row) / np.log1p(-share) if share > 0 else np.full(len(row), np.inf)
            for row, share in zip(uniform(sets), shares, strict=True)
        ]


def entropy(problem: Problem, prices: np.ndarray) -> list[np.ndarray]:
    r"""By the number of effectively distinct filters that go with a unit; without data.

    The entropy ``H_i`` of a filter among the ``N`` of its layer is minus the logarithm of its mean similarity to them
    (:class:`fec_fast.Formula`, ``axis="filters"``), so that ``D = exp(mean H)``, between 1 and ``N``, is the number of
    effectively distinct filters: the diversity of order 1 of Leinster & Cobbold (Ecology 93(3), 2012). A layer whose
    entropy is a small share of its maximum ``ln N`` has few distinct filters for its width. ``exp(H_i)`` is a filter's
    own part in it, so when the filters have gone whose entropy is lower, ``D * exp(H_i) / sum of those left`` distinct
    filters go with filter ``i``: less in a wide layer than in a narrow one of as many distinct filters, and less for
    the low end of a layer whose entropies are spread.

    Where a set has several layers, a filter of each goes with a unit: their ``D`` are added up, and their sorted parts
    averaged. A layer without entropies (depthwise) counts as one of equal parts and the average ``D``.

    Args:
        problem: The traced model. Its own formula is not used: the policy does not depend on the criterion.
        prices: For each set, what one unit less saves of the budget; positive.

    Returns:
        For each set, ``[units]``.
    """
    formula = Formula(tau_scale=TAU_SCALE)
    sides, vectors = side_entropies(problem.traced, problem.weights, formula, (False,), problem.backend)
    parts = {side.use.layer: vector.numpy() for side, vector in zip(sides, vectors, strict=True)}
    sets = problem.coupling.sets
    usual = float(np.mean([math.exp(float(vector.mean())) for vector in vectors])) if vectors else 1.0
    distinct, rows = [], []
    for one in sets:
        found = [parts.get(layer, np.full(1, math.log(usual))) for layer in one.layers]
        distinct.append(sum(float(np.exp(vector.mean())) for vector in found))
        rows.append(np.mean([_resampled(np.exp(np.sort(vector)), len(one.units)) for vector in found], 0))
    worth = np.array(distinct) / prices**PRICE_POWER
    return [number * _of_what_is_left(row) for number, row in zip(worth, rows, strict=True)]


def ranking(sets: Sequence[CoupledChannels], scores: Sequence[Tensor], prices: np.ndarray) -> list[np.ndarray]:
    """All units in one ranking of their scores.

    Scores of different layers are not comparable as they are. Each is divided by the sum of those scores of its set
    that are not lower, which is what would be left of the set when its turn comes; so the last unit of a set weighs 1
    and the first of a wide set little. That is the normalisation of LAMP (Lee et al., Layer-adaptive Sparsity for the
    Magnitude-based Pruning, ICLR 2021), which has squared weights for scores. A unit of a set with several layers takes
    a filter of each, and weighs as much as they do together.

    Args:
        sets: The coupled sets.
        scores: For each set ``[units]``, of any criterion whose scores are not negative.
        prices: For each set, what one unit less saves of the budget; positive.

    Returns:
        For each set, ``[units]``.
    """
    worth = np.array([len(one.layers) for one in sets]) / prices**PRICE_POWER
    return [number * _of_what_is_left(np.sort(values.numpy())) for number, values in zip(worth, scores, strict=True)]


def _of_what_is_left(rising: np.ndarray) -> np.ndarray:
    """Each of rising numbers as a share of the sum of itself and those after it, made to rise."""
    rising = np.maximum(rising, 0.0)
    left = np.cumsum(rising[::-1])[::-1]
    equal = 1.0 / np.arange(len(rising), 0, -1)
    return np.asarray(np.maximum.accumulate(np.divide(rising, left, out=equal, where=left > 0)))


def _resampled(rising: np.ndarray, number: int) -> np.ndarray:
    """A sorted row brought to another length, for layers of which a unit holds several filters or none."""
    if len(rising) == number:
        return rising
    return np.asarray(np.interp(np.linspace(0, 1, number), np.linspace(0, 1, len(rising)), rising))
