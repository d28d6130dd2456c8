"""Allocation policies: how the removal that a budget demands is spread over the layers.

A policy gives each coupled set a rising row of *thresholds*, one per unit: at a threshold ``t``, common to all sets, a
set has lost as many units as it has thresholds up to ``t``. (Which units these are, the criterion decides.) Thresholds
are only compared with one another. :mod:`fec_fast.pruning.allocation.solver` raises ``t`` until the budget is met.

``"entropy"`` and ``"global"`` divide the estimated loss of a unit by a power of its *price*: what the budget saves by
removing it, relative to the average set. A knapsack would divide by the price itself (the power 1), but the loss is
only a rough estimate, and the full price then moves nearly all removal to a few expensive layers. Of the powers 0, 1/4,
1/2 and 1, and of four scales of tau, the defaults below kept the most accuracy on two CIFAR networks (docs/study.md,
"The constants of entropy").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from ...graph.groups import CoupledChannels
from ...scoring.formula import Formula
from ..context import PruningContext
from ..unit_scores import side_entropies
from .sensitivity import lower_hull

POLICIES = ("uniform", "entropy", "global", "sensitivity", "reconstruction", "ablation")
DEFAULT_POLICY = "entropy"  # it kept the most accuracy in docs/study.md


def uniform_thresholds(sets: Sequence[CoupledChannels]) -> list[np.ndarray]:
    """The policy ``"uniform"``: every set loses the same share of its units.

    Args:
        sets: The coupled sets.

    Returns:
        For each set float64 ``[units]``: 1/units, 2/units, ..., 1.
    """
    return [np.arange(1, len(coupled.units) + 1) / len(coupled.units) for coupled in sets]


def profile_thresholds(sets: Sequence[CoupledChannels], ratios: Sequence[float]) -> list[np.ndarray]:
    """The caller's ratios as a profile: at the threshold ``t`` a set with the ratio ``r`` keeps the share ``(1-r)**t``.

    Args:
        sets: The coupled sets.
        ratios: The ratio of each set, in [0, 1), which it reaches at the threshold 1. A set with 0 loses nothing.

    Returns:
        For each set float64 ``[units]``; infinite where the ratio is 0.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        # Solved for t: a removed share s is reached at t = log(1 - s) / log(1 - r).
        return [
            np.log1p(-shares) / np.log1p(-ratio) if ratio > 0 else np.full(len(shares), np.inf)
            for shares, ratio in zip(uniform_thresholds(sets), ratios, strict=True)
        ]


@dataclass(frozen=True)
class EntropyPolicy:
    r"""The policy ``"entropy"``: removes the units with which the fewest distinct filters are lost; no data needed.

    The entropy ``H_i`` of a filter among the ``N`` of its layer is minus the logarithm of its mean similarity to them
    (:class:`fec_fast.Formula`, ``axis="filters"``), so that ``D = exp(mean H)``, between 1 and ``N``, is the number of
    effectively distinct filters: the diversity of order 1 of Leinster & Cobbold (Ecology 93(3), 2012). A layer whose
    entropy is far below its maximum ``ln N`` has few distinct filters for its width. ``exp(H_i)`` is the part of filter
    ``i`` in that number. Filters are removed by rising entropy, so when it is the turn of filter ``i``, the number of
    distinct filters that is lost with it is ``D * exp(H_i) / sum of exp(H_j) over the filters that are left``. It is
    smaller in a wide layer than in a narrow one with as many distinct filters, and smaller for the low end of a layer
    whose entropies differ much.

    A unit of a set with several layers takes a filter of each: their ``D`` are added up, and their sorted parts
    averaged. A layer without entropies (depthwise) counts as having equal parts and the average ``D``.

    Attributes:
        tau_scale: The scale of the similarity's tau, as in :class:`fec_fast.Formula`, without unit. With tau at the
            mean distance (1.0) nearly every layer has ``e`` effectively distinct filters; at a quarter of it, layers
            differ.
        price_power: The power of the price that the loss is divided by; 0 ignores prices, 1 is a knapsack.
    """

    tau_scale: float = 0.25
    price_power: float = 0.5

    def thresholds(self, context: PruningContext, prices: np.ndarray) -> list[np.ndarray]:
        """Computes the thresholds.

        Args:
            context: The traced model. Its own formula is not used: the policy does not depend on the criterion.
            prices: Float64 ``[sets]``, positive: what removing one unit of each set saves, relative to the average set.

        Returns:
            For each set float64 ``[units]``, rising.
        """
        scored = side_entropies(
            context.trace, context.index.tensors, Formula(tau_scale=self.tau_scale), (False,), context.backend
        )
        entropies = [vector[~np.isnan(vector)] for _, _, vector in scored]
        entropies_of = {side.use.layer: vector for (side, _, _), vector in zip(scored, entropies, strict=True)}
        average_distinct = (
            float(np.mean([math.exp(float(vector.mean())) for vector in entropies])) if entropies else 1.0
        )
        distinct, parts = [], []
        for coupled in context.coupling.sets:
            vectors = [entropies_of.get(layer, np.full(1, math.log(average_distinct))) for layer in coupled.layers]
            distinct.append(sum(float(np.exp(vector.mean())) for vector in vectors))
            parts.append(np.mean([_resample(np.exp(np.sort(v)), len(coupled.units)) for v in vectors], 0))
        weights = np.array(distinct) / prices**self.price_power
        return [weight * _shares_of_remaining(row) for weight, row in zip(weights, parts, strict=True)]


@dataclass(frozen=True)
class GlobalPolicy:
    """The policy ``"global"``: all units of the model in one ranking by their scores.

    Scores of different layers are not comparable as they are. Each is divided by the sum of itself and the higher
    scores of its set, which is what is left of the set when its turn comes. The last unit of a set has the share 1,
    and the first unit of a wide set a small one. This is the normalisation of LAMP (Lee et al., Layer-adaptive
    Sparsity for the Magnitude-based Pruning, ICLR 2021), which uses squared weights as scores. A unit of a set with
    several layers takes a filter of each; its share is multiplied by the number of layers.

    Attributes:
        price_power: The power of the price that the share is divided by; 0 ignores prices.
    """

    price_power: float = 0.5

    def thresholds(
        self, sets: Sequence[CoupledChannels], scores: Sequence[Tensor], prices: np.ndarray
    ) -> list[np.ndarray]:
        """Computes the thresholds.

        Args:
            sets: The coupled sets.
            scores: For each set float64 ``[units]``, from any criterion whose scores are not negative.
            prices: Float64 ``[sets]``, positive: what removing one unit of each set saves, relative to the average set.

        Returns:
            For each set float64 ``[units]``, rising.
        """
        weights = np.array([len(coupled.layers) for coupled in sets]) / prices**self.price_power
        return [
            weight * _shares_of_remaining(np.sort(values.numpy()))
            for weight, values in zip(weights, scores, strict=True)
        ]


@dataclass(frozen=True)
class ReconstructionPolicy:
    """The policy ``"reconstruction"``: removes the units that cost the least, for what they save, once made up for.

    The cost of a set is the error of the layers that read it, relative to their outputs, when its units alone are
    removed in the order of the criterion and the other channels make up for them
    (:func:`fec_fast.pruning.unit_errors.removal_errors`). What each further unit adds, on the lower convex hull, is
    divided by its price, as in a knapsack: the error is measured, not estimated from weights.

    An error of one set alone does not know that the errors of all sets add up, nor that the layer behind sees what is
    left of its inputs through them. A greedy order would therefore run cheap sets down to a few channels. So what a
    unit adds is also divided by a power of the share of its set that is left.

    Attributes:
        price_power: The power of the price that the cost is divided by; 1 is a knapsack, 0 ignores prices.
        share_power: The power of the share that is left; 0 is the plain knapsack.
    """

    price_power: float = 1.0
    share_power: float = 0.5

    def thresholds(self, errors: Sequence[np.ndarray], prices: np.ndarray) -> list[np.ndarray]:
        """Computes the thresholds.

        Args:
            errors: For each set float64 ``[units]``, rising: the error when as many units are removed.
            prices: Float64 ``[sets]``, positive: what removing one unit of each set saves, relative to the average set.

        Returns:
            For each set float64 ``[units]``, rising.
        """
        return [
            _hull_slopes(row) / (np.arange(len(row), 0, -1) / len(row)) ** self.share_power / price**self.price_power
            for row, price in zip(errors, prices, strict=True)
        ]


@dataclass(frozen=True)
class AblationPolicy(ReconstructionPolicy):
    """The policy ``"ablation"``: removes the units that cost the least, for what they save, when they are left out.

    As :class:`ReconstructionPolicy`, but nothing makes up for the units that are removed. It is meant for networks that
    are not recovered: what others could make up for is lost there too.
    """


def _shares_of_remaining(rising: np.ndarray) -> np.ndarray:
    """Each of some rising numbers as a share of the sum of itself and those after it; the result rises, too."""
    rising = np.maximum(rising, 0.0)
    remaining = np.cumsum(rising[::-1])[::-1]
    # Where all that remain are 0, they are equal: shares of 1/n, 1/(n-1), ..., 1.
    shares = np.divide(rising, remaining, out=1.0 / np.arange(len(rising), 0, -1), where=remaining > 0)
    # The solver needs rows that never fall. Rising numbers have rising shares, but for rounding: hence the maximum.
    return np.asarray(np.maximum.accumulate(shares))


def _resample(rising: np.ndarray, length: int) -> np.ndarray:
    """A sorted row interpolated to another length, for layers of which a unit holds several filters, or none."""
    if len(rising) == length:
        return rising
    return np.asarray(np.interp(np.linspace(0, 1, length), np.linspace(0, 1, len(rising)), rising))


def _hull_slopes(errors: np.ndarray) -> np.ndarray:
    """What each further unit adds to an error, on the lower convex hull of its curve from 0: float64, rising."""
    curve = np.concatenate([np.zeros(1), errors])
    counts = np.arange(len(curve))
    corners = lower_hull(counts, curve)
    slopes = np.diff(np.interp(counts, corners, curve[corners]))
    return np.asarray(np.maximum.accumulate(slopes))
