"""How much goes where: from what the caller asked for to a number of units for each coupled set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ...graph.size_model import SizeModel
from ...utils.errors import ArgumentError, BudgetError, RatioError, nearest
from ..context import Problem
from . import latency_budget as latency
from . import policies
from .budget import CURRENCIES, Budget
from .ratios import check_number, check_ratio, levels, named, removals
from .sensitivity import Calibration, Sensitivity, knapsack, measure
from .solver import Size, solve

# A budget is met well if no more than this share of what should go goes besides.
NEAR = 0.01


@dataclass(frozen=True)
class Amounts:
    """What the caller of :func:`fec_fast.prune` said about how much goes where.

    Attributes:
        ratio: See there, as are the others.
        ratios: See there.
        budget: See there.
        calibration: See there.
        min_channels: See there.
        round_to: See there.
    """

    ratio: float | None
    ratios: str | Mapping[str, float] | Sensitivity | None
    budget: Budget | None
    calibration: Calibration | None
    min_channels: int
    round_to: int

    def __post_init__(self) -> None:
        """Refuses what contradicts itself."""
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise ArgumentError(f"budget={self.budget!r}: give a fec_fast.Budget, such as Budget(params=0.7)")
        if self.ratio is not None:
            check_ratio("ratio", self.ratio)
            if self.ratios is not None:
                raise RatioError("give ratio= for every layer or ratios= by layer, not both")
            if self.budget is not None:
                raise RatioError("give ratio= for every layer or budget= for the whole, not both")
        if isinstance(self.ratios, str):
            if self.ratios not in policies.NAMES:
                hint = nearest(self.ratios, policies.NAMES)
                raise ArgumentError(f"ratios={self.ratios!r}: {hint}; one of {policies.NAMES} or a mapping")
            if self.budget is None:
                raise RatioError(
                    f"ratios={self.ratios!r} says where and not how much: add a budget, such as "
                    "budget=fec_fast.Budget(params=0.5)"
                )
        elif isinstance(self.ratios, Sensitivity) and self.budget is None:
            raise RatioError("ratios=Sensitivity(...) says where and not how much: add a budget")
        elif self.ratios is not None and not isinstance(self.ratios, Mapping | Sensitivity):
            kind = type(self.ratios).__name__
            raise ArgumentError(f"ratios: expected a mapping from layer names to numbers or a policy, got {kind}")
        if (self.ratios == "sensitivity") != (self.calibration is not None):
            raise RatioError(
                "ratios='sensitivity' needs calibration=, a loader of images and labels or a function from a model to "
                "a number; nothing else does"
            )
        check_number("round_to", self.round_to)
        check_number("min_channels", self.min_channels)

    def counts(self, problem: Problem) -> tuple[list[int], list[str]]:
        """Decides.

        Args:
            problem: The traced model.

        Returns:
            How many units each set loses, and notes for the plan.
        """
        coupling = problem.coupling
        if self.budget is None:
            assert not isinstance(self.ratios, str | Sensitivity)
            known = problem.known
            return removals(coupling, self.ratio, self.ratios, self.round_to, self.min_channels, known), []
        sizes = SizeModel(problem.index, problem.traced, coupling)
        allowed = [levels(one, coupling.axis_lengths, self.round_to, self.min_channels) for one in coupling.sets]
        pressures = self._pressures(problem, sizes)
        if self.budget.currency == "latency_ms":
            numbers, note = latency.meet(problem, sizes, self.budget.amount / 1e3, NEAR, pressures, allowed)
            return numbers.tolist(), [note]
        size = getattr(sizes, self.budget.currency)
        whole = float(size(np.zeros(len(coupling.sets))))
        limit = whole * (1 - self.budget.amount)
        counts = solve(size, limit, limit - NEAR * (whole - limit), pressures, allowed)
        return counts.tolist(), self._told(size, whole, counts)

    def _pressures(self, problem: Problem, sizes: SizeModel) -> list[np.ndarray]:
        assert self.budget is not None
        sets = problem.coupling.sets
        ratios = policies.DEFAULT if self.ratios is None else self.ratios
        if ratios == "uniform":
            return policies.uniform(sets)
        if isinstance(ratios, Mapping):
            return policies.profile(sets, named(problem.coupling, ratios, problem.known))
        # A forecast of latency needs tables, and saves by whole steps of the hardware: multiply-accumulates stand in.
        prices = _prices(sizes, "macs" if self.budget.currency == "latency_ms" else self.budget.currency, len(sets))
        if ratios == "entropy":
            return policies.entropy(problem, prices)
        if ratios == "global":
            return policies.ranking(sets, problem.scores, prices)
        if isinstance(ratios, Sensitivity):
            return knapsack(ratios, problem, prices)
        assert self.calibration is not None
        return knapsack(measure(problem, self.calibration), problem, prices)

    def _told(self, size: Size, whole: float, counts: np.ndarray) -> list[str]:
        """Says what was met, or raises where it was not."""
        assert self.budget is not None
        left = float(size(counts))
        share = 1 - left / whole
        name, asked = self.budget.currency, self.budget.amount
        if left > whole * (1 - asked):
            nearest_share = np.floor(share * 1e4) / 1e4
            which = (
                f"the nearest that can be met is Budget({name}={nearest_share:g})"
                if nearest_share
                else "nothing can go"
            )
            raise BudgetError(
                f"Budget({self.budget}) cannot be met: at most {share:.4f} of the {CURRENCIES[name]} can go with "
                f"round_to={self.round_to}, min_channels={self.min_channels} and these ratios; {which}"
            )
        note = f"budget {self.budget}: {share:.4f} of the {CURRENCIES[name]} removed"
        if share - asked > NEAR * asked:
            note += ", as near as whole steps of the widths come"
        return [note]


def _prices(sizes: SizeModel, currency: str, sets: int) -> np.ndarray:
    """What one unit less of each set saves, in shares of the average over the sets."""
    size = getattr(sizes, currency)
    saved = size(np.zeros(sets)) - size(np.eye(sets))
    mean = float(saved.mean()) or 1.0
    return np.asarray(np.maximum(saved / mean, 1e-3))  # a unit that saves nothing at the peak may save something later
