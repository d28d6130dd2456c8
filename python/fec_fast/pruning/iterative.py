"""``prune_iteratively``: several rounds of pruning and training, with one plan for all of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from ..plan.composition import compose
from ..plan.shapes import fingerprint
from ..utils.errors import ArgumentError, TrainingError
from ..utils.model_index import ModelIndex
from ..utils.user_warnings import warn_user
from .allocation.budget import Budget, round_budget
from .arguments import check_round_arguments
from .measured_size import network_size
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
    """Prunes in several rounds with training after each, and returns one plan against the original.

    The size shrinks by the same factor in every round: to reach ``params=0.875`` in three rounds, each halves it. Every
    round scores the weights that the training left. The given model is not changed.

    Args:
        model: The network; DataParallel, DistributedDataParallel and torch.compile wrappers are looked through.
        example_inputs: A tensor or list is the single argument, a tuple the positional arguments, a dictionary the
            keyword arguments. A small batch is enough.
        budget: The size that the network must reach after the last round, relative to the original.
        train: Trains the network it is given, in place; its second argument is the round, from 1. For instance
            ``lambda network, _: fec_fast.finetune(network, loader, epochs=2)``. It is called after the last round too.
        rounds: The number of rounds, at least 1; 3 by default.
        **options: Options for :func:`fec_fast.prune`: ratios, calibration, recover, criterion, formula, sides, ignore,
            min_channels, round_to, norms, verify. Every round is recovered after its cut, before its training, as
            ``recover`` says: by default on noise, where there are batch norms; ``recover=None`` saves that time.

    Returns:
        The trained network, the composed plan, and the counts of the original and of the trained network.
        ``difference`` is the largest of the rounds, each measured before training, because the trained network no
        longer equals the masked original.

    Raises:
        RatioError: ``remove`` or ``ratio`` is given, or ``ratios`` is a measured sensitivity: it holds for the first
            round only.
        ArgumentError: ``rounds`` is not a whole number of at least 1, or ``train`` cannot be called.
        TrainingError: ``train`` changed a shape, or returned another network.
        BudgetError: A round's share of the budget cannot be met.
    """
    if not isinstance(budget, Budget):
        raise ArgumentError(f"budget={budget!r}: give a fec_fast.Budget, such as Budget(params=0.7)")
    check_round_arguments(rounds, train, options)
    size_before = network_size(model, example_inputs, budget)
    is_share = budget.quantity != "latency_ms"
    target = size_before * (1 - budget.share_of(size_before)) if is_share else budget.amount
    result: PruneResult | None = None
    for number in range(1, rounds + 1):
        network = model if result is None else result.model
        # The size after this round, on a geometric sequence from the original's size to the target.
        amount = size_before * (target / size_before) ** (number / rounds)
        if is_share:
            # What this round removes, as a share of the network that the earlier rounds left. Slightly less, so that
            # rounding does not cost one more unit.
            amount = 1 - amount / network_size(network, example_inputs, budget) - 1e-12
        if result is not None and is_share and amount <= 0:
            warn_user(f"round {number} of {rounds} removes nothing: the rounds before have removed enough for it")
        else:
            pruned = prune(network, example_inputs, budget=round_budget(budget, amount), **options)
            result = pruned if result is None else _joined(result, pruned)
        returned = train(result.model, number)
        own = set(map(id, result.model.parameters()))
        if isinstance(returned, nn.Module) and own.isdisjoint(map(id, returned.parameters())):  # no wrapper of it
            raise TrainingError(
                f"train returned another network in round {number}: what it returns is not used; copy its weights into "
                "the network that it is given (load_state_dict)"
            )
        if fingerprint(ModelIndex.of(result.model)) != result.plan.pruned_fingerprint:
            raise TrainingError(f"train changed the shapes of the network in round {number}; it may change values only")
    assert result is not None
    return result


def _joined(first: PruneResult, second: PruneResult) -> PruneResult:
    """Two successive results as one: the second network with a plan against the original of the first."""
    proofs = [result.proof for result in (second, first) if result.proof is not None]
    worst = max((proof.difference for proof in proofs), default=0.0)
    return dataclasses.replace(
        second,
        plan=compose(first.plan, second.plan),
        before=first.before,
        proof=dataclasses.replace(proofs[0], difference=worst) if proofs else None,
    )
