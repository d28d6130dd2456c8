"""Allocation: from what the caller asked for to the number of units that each coupled set loses."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...graph.size_model import SizeModel
from ...utils.errors import ArgumentError, BudgetError, RatioError, nearest
from ...utils.runtimes import require_runtime
from ..arguments import check_positive_integer
from ..context import PruningContext
from ..criteria import ABLATION, RECONSTRUCTION
from ..unit_errors import removal_errors
from .budget import QUANTITIES, Budget
from .latency_budget import LatencyMeasurements, check_reachable, search_latency
from .measured import Sensitivity
from .policies import (
    DEFAULT_POLICY,
    POLICIES,
    AblationPolicy,
    EntropyPolicy,
    GlobalPolicy,
    ReconstructionPolicy,
    profile_thresholds,
    uniform_thresholds,
)
from .ratios import allowed_removal_counts, check_ratio, ratios_of_sets, removal_counts_from_ratios
from .sensitivity import Calibration, SensitivityMeter, knapsack_thresholds
from .solver import SizeFunction, smallest_removal

Policy = EntropyPolicy | GlobalPolicy | ReconstructionPolicy
Ratios = str | Mapping[str, float] | Sensitivity | Policy
# Accept overshooting the requested reduction by up to 1 %; in a latency budget, being faster than asked by up to 2 %:
# to tell 1 % apart, every network was timed for ten seconds, and small networks have no widths that near.
TOLERANCE, LATENCY_TOLERANCE = 0.01, 0.02
# What a plan says of the policy, for those who ask why one layer lost more than another.
SPREAD = "spread over the layers"
_SPREAD_BY = {
    "uniform": 'by the policy "uniform": every coupled set loses the same share',
    "entropy": 'by the policy "entropy": most is lost where filters are like one another and a channel saves much',
    "global": 'by the policy "global": all units in one ranking, by their share of what is left of their set',
    "sensitivity": "by sensitivity: most is lost where the measured value falls least for what is saved",
    RECONSTRUCTION: 'by the policy "reconstruction": most is lost where other channels make up for it best',
    ABLATION: 'by the policy "ablation": most is lost where the layers that read it change least',
    "profile": "in the given proportions",
}


@dataclass
class Measurements:
    """What one call of ``prune`` has measured, kept when it plans again, so that nothing is measured twice.

    Attributes:
        latency: Measured times of layers and networks.
        sensitivity: The meter of the calibration; ``None`` before it was used.
        removal_errors: By the label of a unit, the error when it and those before it are removed
            (:mod:`fec_fast.pruning.unit_errors`), in the order of another criterion than that of the policy.
        notes: Notes on what was measured, for the plan.
    """

    latency: LatencyMeasurements = field(default_factory=LatencyMeasurements)
    sensitivity: SensitivityMeter | None = None
    removal_errors: dict[int, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def removed_shares(
    remove: float | Mapping[str, float] | None, ratio: float | None, ratios: Ratios | None, budget: object
) -> tuple[float | None, Ratios | None]:
    """What ``remove=`` of :func:`fec_fast.prune` says, as ``ratio`` or ``ratios``, its older spellings.

    Args:
        remove: The share of channels to remove from every coupled set, or from each named layer; ``None`` was not
            given.
        ratio: The caller's.
        ratios: The caller's.
        budget: The caller's.

    Returns:
        ``ratio`` and ``ratios``.

    Raises:
        RatioError: ``remove`` and another of them are given, or a share outside [0, 1).
        ArgumentError: Neither a number nor a mapping.
    """
    if remove is None:
        return ratio, ratios
    for name, other in (("ratio", ratio), ("ratios", ratios), ("budget", budget)):
        if other is not None:
            raise RatioError(f"remove= says how much every layer loses, and {name}= too: give one of them")
    if isinstance(remove, Mapping):
        for layer, share in remove.items():
            check_ratio(f"remove[{layer!r:.80}]", share)
        return None, remove
    return check_ratio("remove", remove), None


@dataclass(frozen=True)
class AllocationRequest:
    """How much the caller of :func:`fec_fast.prune` wants removed, and from where.

    Attributes:
        ratio: The share of channels to remove from every coupled set, in [0, 1). ``None``: 0.5 if neither ``ratios``
            nor ``budget`` is given.
        ratios: The share for each named layer; or, with a budget, how removal is spread over the layers: the name of a
            policy, a policy object with other constants than the default ones, or a measured sensitivity. ``None``:
            the policy ``"entropy"`` if a budget is given.
        budget: The size that the pruned network must reach; or ``None``.
        calibration: For the policies that need it, see :func:`fec_fast.pruning.arguments.check_calibration`.
        min_channels: The number of output channels that every layer keeps, or all where it has fewer.
        round_to: Channels are removed in multiples of this, so that widths that were multiples stay multiples.

    Raises:
        RatioError: A ratio outside [0, 1), or a contradiction.
        ArgumentError: An argument of the wrong kind.
        MissingExtraError: The runtime of a latency budget is not installed.
    """

    ratio: float | None = None
    ratios: Ratios | None = None
    budget: Budget | None = None
    calibration: Calibration | None = None
    min_channels: int = 1
    round_to: int = 1

    def __post_init__(self) -> None:
        """Checks every argument, and that none contradicts another."""
        if self.budget is not None and not isinstance(self.budget, Budget):
            raise ArgumentError(f"budget={self.budget!r}: give a fec_fast.Budget, such as Budget.remove(params=0.7)")
        if self.budget is not None:
            require_runtime(self.budget.runtime)
        if self.ratio is not None:
            check_ratio("ratio", self.ratio)
            if self.ratios is not None:
                raise RatioError("give ratio= for every layer or ratios= by layer, not both")
            if self.budget is not None:
                raise RatioError("give ratio= for every layer or budget= for the whole, not both")
        if isinstance(self.ratios, str):
            if self.ratios not in POLICIES:
                hint = nearest(self.ratios, POLICIES)
                raise ArgumentError(f"ratios={self.ratios!r}: {hint}; give one of {POLICIES}, or a mapping")
            if self.budget is None:
                raise RatioError(
                    f"ratios={self.ratios!r} says where and not how much: add a budget, such as "
                    "budget=fec_fast.Budget(params=0.5)"
                )
        elif isinstance(self.ratios, Sensitivity | Policy):
            if self.budget is None:
                kind = type(self.ratios).__name__
                raise RatioError(f"ratios={kind}(...) says where and not how much: add a budget")
        elif self.ratios is not None and not isinstance(self.ratios, Mapping):
            kind = type(self.ratios).__name__
            raise ArgumentError(f"ratios: expected a mapping from layer names to numbers or a policy, got {kind}")
        check_positive_integer("round_to", self.round_to)
        check_positive_integer("min_channels", self.min_channels)

    @property
    def policy(self) -> str | None:
        """The name of the policy for ratios; ``None`` without a budget, and for ratios by layer or measured ones."""
        if isinstance(self.ratios, ReconstructionPolicy):
            return _name_of(self.ratios)
        return self.ratios if isinstance(self.ratios, str) else None

    @property
    def runs_pruned_networks(self) -> bool:
        """Whether pruned networks are run before the counts are known: to measure latency or sensitivity."""
        return self.ratios == "sensitivity" or (self.budget is not None and self.budget.quantity == "latency_ms")

    def removal_counts(self, context: PruningContext, measurements: Measurements) -> tuple[list[int], list[str]]:
        """Decides how many units each coupled set loses.

        Args:
            context: The traced and scored model.
            measurements: What was measured before on this model; new measurements are added.

        Returns:
            The number of units for each set, and notes for the plan.

        Raises:
            RatioError: Different ratios for coupled layers.
            LayerError: A ratio for an unknown layer, or for one that cannot be pruned.
            BudgetError: The budget cannot be met; the nearest that can be met is named.
        """
        coupling = context.coupling
        if self.budget is None:
            assert self.ratios is None or isinstance(self.ratios, Mapping)
            counts = removal_counts_from_ratios(
                coupling, self.ratio, self.ratios, self.round_to, self.min_channels, context.layer_names
            )
            unnamed = self.ratio is None and self.ratios is None
            return counts, ["no amount was given: half of every coupled set was removed"] if unnamed else []
        sizes = SizeModel(context.index, context.trace, coupling)

        def allowed_of(step: int) -> list[np.ndarray]:
            multiple = math.lcm(self.round_to, step)
            return [
                allowed_removal_counts(coupled, coupling.axis_lengths, multiple, self.min_channels)
                for coupled in coupling.sets
            ]

        allowed_counts = allowed_of(1)
        if self.budget.quantity == "latency_ms":
            measurements.latency.runtime = self.budget.runtime
            check_reachable(context, self.budget.amount / 1e3, allowed_counts, self.budget.runtime)
        thresholds = self._thresholds(context, sizes, measurements)
        if self.budget.quantity == "latency_ms":
            target = self.budget.amount / 1e3
            latency_counts, note = search_latency(
                context, sizes, target, LATENCY_TOLERANCE, thresholds, allowed_of, measurements.latency
            )
            return latency_counts.tolist(), [note, self._spread_note(), *measurements.notes]
        size_of = getattr(sizes, self.budget.quantity)
        size_before = float(size_of(np.zeros(len(coupling.sets))))
        limit = size_before * (1 - self.budget.share_of(size_before))
        near_limit = limit - TOLERANCE * (size_before - limit)
        removed = smallest_removal(size_of, limit, near_limit, thresholds, allowed_counts)
        note = self._budget_note(size_of, size_before, removed)
        return removed.tolist(), [note, self._spread_note(), *measurements.notes]

    def _thresholds(self, context: PruningContext, sizes: SizeModel, measurements: Measurements) -> list[np.ndarray]:
        """The thresholds of the requested policy, see :mod:`fec_fast.pruning.allocation.policies`."""
        assert self.budget is not None
        sets = context.coupling.sets
        ratios = DEFAULT_POLICY if self.ratios is None else self.ratios
        if ratios == "uniform":
            return uniform_thresholds(sets)
        if isinstance(ratios, Mapping):
            return profile_thresholds(sets, ratios_of_sets(context.coupling, ratios, context.layer_names))
        # A unit has no price in milliseconds before layers are timed, and hardware saves time in steps of several
        # channels; the price in multiply-accumulates is used for latency budgets.
        quantity = "macs" if self.budget.quantity == "latency_ms" else self.budget.quantity
        prices = _prices(getattr(sizes, quantity), len(sets))
        if ratios == "entropy":
            ratios = EntropyPolicy()
        elif ratios == "global":
            ratios = GlobalPolicy()
        elif ratios == RECONSTRUCTION:
            ratios = ReconstructionPolicy()
        elif ratios == ABLATION:
            ratios = AblationPolicy()
        if isinstance(ratios, EntropyPolicy):
            return ratios.thresholds(context, prices)
        if isinstance(ratios, GlobalPolicy):
            return ratios.thresholds(sets, context.scores, prices)
        if isinstance(ratios, Sensitivity):
            return knapsack_thresholds(ratios, context, prices)
        assert self.calibration is not None
        if isinstance(ratios, ReconstructionPolicy):
            return ratios.thresholds(self._removal_errors(context, measurements, _name_of(ratios)), prices)
        if measurements.sensitivity is None:
            measurements.sensitivity = SensitivityMeter(self.calibration)
        return knapsack_thresholds(measurements.sensitivity.measure(context), context, prices)

    def _spread_note(self) -> str:
        """A note on how the removal was spread."""
        ratios = DEFAULT_POLICY if self.ratios is None else self.ratios
        if not isinstance(ratios, str):
            kinds = {EntropyPolicy: "entropy", GlobalPolicy: "global", Sensitivity: "sensitivity"}
            kinds |= {ReconstructionPolicy: RECONSTRUCTION, AblationPolicy: ABLATION}
            ratios = kinds.get(type(ratios), "profile")
        return f"{SPREAD} {_SPREAD_BY[ratios]}"

    def _removal_errors(self, context: PruningContext, measurements: Measurements, policy: str) -> list[np.ndarray]:
        """For each set the rising errors when its units are removed in the order of the criterion."""
        sets = context.coupling.sets
        if context.criterion_name == policy:
            return [np.sort(scores.numpy()) for scores in context.scores]
        known = measurements.removal_errors
        if not known:
            orders = [np.argsort(scores.numpy(), kind="stable").tolist() for scores in context.scores]
            errors, measurements.notes = removal_errors(
                context.index,
                context.trace,
                sets,
                self.calibration,
                context.example_inputs,
                orders,
                made_up_for=policy == RECONSTRUCTION,
            )
            for coupled, values in zip(sets, errors, strict=True):
                known.update(zip(coupled.units, values.tolist(), strict=True))
        return [np.sort([known[unit] for unit in coupled.units]) for coupled in sets]

    def _budget_note(self, size_of: SizeFunction, size_before: float, counts: np.ndarray) -> str:
        """A note on the share that is removed; raises ``BudgetError`` where it is too small."""
        assert self.budget is not None
        size_after = float(size_of(counts))
        removed = 1 - size_after / size_before
        name, requested = self.budget.quantity, self.budget.share_of(size_before)
        if size_after > size_before * (1 - requested):
            nearest_share = np.floor(removed * 1e4) / 1e4  # rounded down, so that the named budget can be met
            remedy = (
                f"the nearest that can be met is Budget({name}={nearest_share:g})"
                if nearest_share
                else "nothing can be removed"
            )
            raise BudgetError(
                f"Budget({self.budget}) cannot be met: at most {removed:.4f} of the {QUANTITIES[name]} can be removed "
                f"with round_to={self.round_to}, min_channels={self.min_channels} and these ratios; {remedy}"
            )
        note = f"budget {self.budget}: {removed:.4f} of the {QUANTITIES[name]} removed"
        if removed - requested > TOLERANCE * requested:
            note += ", as near as whole steps of the widths come"
        return note


def _name_of(policy: ReconstructionPolicy) -> str:
    return ABLATION if isinstance(policy, AblationPolicy) else RECONSTRUCTION


def _prices(size_of: SizeFunction, sets: int) -> np.ndarray:
    """What removing one unit of each set saves, relative to the average set: float64 ``[sets]``, positive."""
    savings = size_of(np.zeros(sets)) - size_of(np.eye(sets))
    relative = savings / (float(savings.mean()) or 1.0)
    # A unit that saves nothing now (its layer is not at the peak of memory) may save something later, so no price is 0.
    return np.asarray(np.maximum(relative, 1e-3))
