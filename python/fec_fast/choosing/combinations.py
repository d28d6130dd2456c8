"""Combinations of a sweep: budgets, policies and criteria, checked before anything is pruned."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..pruning.allocation.budget import Budget
from ..pruning.allocation.policies import DEFAULT_POLICY, POLICIES
from ..pruning.arguments import calibration_needs, check_scoring_arguments, default_choice
from ..pruning.criteria import ABLATION, ENTROPY_CRITERIA, Criterion, criterion_name
from ..scoring.formula import Formula
from ..utils.errors import ArgumentError, nearest
from ..utils.model_index import ModelIndex
from .points import point_key


@dataclass(frozen=True)
class Combination:
    """One network that is to be measured.

    Attributes:
        budget: The budget that it must meet.
        policy: What spreads the budget over the layers.
        criterion: What decides which channels are removed.
        key: A digest of all that the measured value depends on.
    """

    budget: Budget
    policy: str
    criterion: str | Criterion
    key: str

    @property
    def name(self) -> str:
        """Budget, policy and criterion, as :attr:`SweepPoint.name` has them."""
        return f"{self.budget}, {self.policy}, {criterion_name(self.criterion)}"


def combinations_of(
    index: ModelIndex,
    budgets: Sequence[Budget | str],
    policies: Sequence[str | None],
    criteria: Sequence[str | Criterion | None],
    formula: Formula | None,
    loader: Any,
    conditions: Mapping[str, Any],
    options: Mapping[str, Any],
) -> list[Combination]:
    """Lists the networks that are to be measured, each once, with the defaults of ``prune`` filled in.

    Args:
        index: The index of the model.
        budgets: Budgets, or their texts.
        policies: Names of policies; ``None`` is the default of ``prune``.
        criteria: Criteria; ``None`` is the default of ``prune``.
        formula: Of the entropies, or ``None``.
        loader: What the networks are recovered on, as ``recover=`` of ``prune``.
        conditions: What else the values depend on.
        options: Further arguments of ``prune``.

    Returns:
        The combinations, criteria changing fastest.

    Raises:
        ArgumentError: An argument of the wrong kind.
        BudgetError: A budget out of its range.
    """
    lists: dict[str, list[Any]] = {}  # an iterator can be gone through once only
    for argument, values in (("budgets", budgets), ("policies", policies), ("criteria", criteria)):
        is_list = isinstance(values, Iterable) and not isinstance(values, str | bytes | Tensor | Budget)
        lists[argument] = list(values) if is_list else []
        if not lists[argument]:
            raise ArgumentError(f"{argument}={values!r:.80}: give a list with at least one entry")
    if not isinstance(formula, Formula | None):
        raise ArgumentError(f"formula: expected a fec_fast.Formula, got {type(formula).__name__}")
    jobs: dict[str, Combination] = {}
    for entry in lists["budgets"]:
        budget = Budget.parse(entry) if isinstance(entry, str) else entry
        if not isinstance(budget, Budget):
            raise ArgumentError(f"budgets: {budget!r} is no fec_fast.Budget and no text such as 'macs=0.5'")
        for given_policy in lists["policies"]:
            for given_criterion in lists["criteria"]:
                criterion, policy = default_choice(
                    index.model,
                    given_criterion,
                    given_policy,
                    budget=budget,
                    formula=formula,
                    sides=options["sides"],
                    recover=loader,
                )
                policy = policy or DEFAULT_POLICY
                name, _ = check_scoring_arguments(
                    criterion, formula if criterion in ENTROPY_CRITERIA else None, options["sides"], options["ignore"]
                )
                if policy not in POLICIES:
                    raise ArgumentError(f"policies: {policy!r}: {nearest(str(policy), POLICIES)}")
                on_noise = given_criterion is None and criterion == policy == ABLATION
                if loader is None and not on_noise and (needs := calibration_needs(criterion, policy)):
                    user, form = next(iter(needs.items()))
                    raise ArgumentError(f"{user} needs loader=, {form}")
                key = point_key({**conditions, "budget": str(budget), "policy": policy, "criterion": name})
                jobs[key] = Combination(budget, policy, criterion, key)
    if formula is not None and not any(job.criterion in ENTROPY_CRITERIA for job in jobs.values()):
        raise ArgumentError("formula= belongs to the criteria 'fec_l1' and 'fec', and none of criteria= is one of them")
    return list(jobs.values())
