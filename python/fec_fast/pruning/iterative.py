"""Prune a little, train a little, several rounds: one plan at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import nn

from ..graph.groups import couple_channels
from ..graph.size_model import SizeModel
from ..graph.trace import trace_model
from ..plan.composition import compose
from ..plan.shapes import fingerprint
from ..utils.errors import ArgumentError, RatioError, TrainingError
from ..utils.model_index import ModelIndex
from ..utils.modules import unwrap
from ..utils.timing import timed_model
from .allocation.budget import Budget
from .pruner import PruneResult, prune


def prune_iteratively(
    model: nn.Module,
    example_inputs: Any,
    *,
    budget: Budget,
    train: Callable[[nn.Module, int], Any],
    rounds: int = 3,
    **options: Any,
) -> PruneResult:
    """Prunes in several rounds with training after each, and gives the whole as one plan against the original.

    What is left shrinks by the same factor in every round: to reach ``params=0.875`` in three rounds, each halves it.
    Every round scores anew what the training left. The given model is not changed.

    Args:
        model: The network.
        example_inputs: See :func:`prune`.
        budget: What the whole has to come to.
        train: Trains the network it is given, in place; its second argument is the round, from 1. For instance
            ``lambda network, _: fec_fast.finetune(network, loader, epochs=2)``. It is called after the last round too.
        rounds: How many.
        **options: For :func:`prune`: ratios, calibration, criterion, formula, sides, ignore, min_channels, round_to,
            verify.

    Returns:
        The trained network, the composed plan, and the counts of the original and of what is left. ``difference`` is
        the largest of the rounds', each taken before training: what was trained no longer equals the masked original.

    Raises:
        RatioError: ``ratio`` is given, or ``ratios`` is a measured sensitivity: it holds for the first round only.
        ArgumentError: ``rounds`` is no whole number of at least 1, or ``train`` cannot be called.
        TrainingError: ``train`` changed a shape.
        BudgetError: A round's share of the budget cannot be met.
    """
    if not isinstance(budget, Budget):
        raise ArgumentError(f"budget={budget!r}: give a fec_fast.Budget, such as Budget(params=0.7)")
    if type(rounds) is not int or rounds < 1:
        raise ArgumentError(f"rounds={rounds!r}: give a whole number of at least 1")
    if not callable(train):
        raise ArgumentError(f"train: expected a function of a model and a round, got {type(train).__name__}")
    if "ratio" in options:
        raise RatioError("give budget= alone: ratio= says nothing of rounds")
    if not (options.get("ratios") is None or isinstance(options["ratios"], str)):
        raise RatioError("ratios: name a policy; ratios by layer and measured sensitivities hold for one round only")
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    original = _size(unwrap(model), example_inputs, budget.currency)
    share = budget.currency != "latency_ms"
    target = original * (1 - budget.amount) if share else budget.amount
    result: PruneResult | None = None
    for number in range(1, rounds + 1):
        before = model if result is None else result.model
        aim = original * (target / original) ** (number / rounds)
        if share:
            now = _size(unwrap(before), example_inputs, budget.currency)
            # The last round's share is of what the others left; a hair less, so that rounding does not cost a unit.
            aim = 1 - aim / now - 1e-12
        following = prune(before, example_inputs, budget=Budget(**{budget.currency: aim}), **options)
        result = following if result is None else _joined(result, following)
        train(result.model, number)
        if fingerprint(ModelIndex.of(result.model)) != result.plan.pruned_fingerprint:
            raise TrainingError(f"train changed the shapes of the network in round {number}; it may change values only")
    assert result is not None
    return result


def _joined(first: PruneResult, second: PruneResult) -> PruneResult:
    """Two rounds as one."""
    known = [value for value in (first.difference, second.difference) if value is not None]
    return dataclasses.replace(
        second, plan=compose(first.plan, second.plan), before=first.before, difference=max(known, default=None)
    )


def _size(model: nn.Module, example_inputs: Any, currency: str) -> float:
    """What a network comes to, in a budget's currency; milliseconds for latency."""
    if currency == "latency_ms":
        return 1e3 * timed_model(model, example_inputs).seconds
    index = ModelIndex.of(model)
    traced = trace_model(index, example_inputs)
    coupling = couple_channels(traced)
    return float(getattr(SizeModel(index, traced, coupling), currency)(np.zeros(len(coupling.sets))))
