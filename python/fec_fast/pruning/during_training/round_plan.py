"""One round of pruning as pure data: a plan, and what recovery makes of the weights. The models are not changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...plan.plan import Plan
from ...plan.surgery import pruned_copy
from ...recovery.batch_norm import reestimate
from ...recovery.calibration import DATA_FREE, calibration_batches
from ...recovery.compensation import IMAGES as MOST_IMAGES
from ...recovery.compensation import compensate
from ...utils.frameworks import keeps_widths
from ...utils.model_index import ModelIndex
from ...utils.modules import named_tensors
from ..allocation.budget import Budget, round_budget
from ..measured_size import network_size
from ..pruner import prune
from .plain_forward import without_autocast
from .schedule import BATCH_NORM, IMAGES, ROUNDING, PruningSchedule


@dataclass(frozen=True)
class RoundPlan:
    """What a round does.

    Attributes:
        plan: The plan for the present model; ``None`` where the model is small enough already.
        values: For the model and each copy, in this order, the tensors that recovery has changed, by name; empty
            without a plan.
        size_before: The size before the round, in the budget's quantity.
        size_after: The size after it.
    """

    plan: Plan | None
    values: list[dict[str, Tensor]]
    size_before: float
    size_after: float


def plan_round(
    model: nn.Module,
    copies: Sequence[nn.Module],
    example_inputs: Any,
    budget: Budget,
    size_wanted: Callable[[float], float],
    schedule: PruningSchedule,
    images: Any,
    options: Mapping[str, Any],
) -> RoundPlan:
    """Plans a round on the present weights, and recovers them.

    Args:
        model: The model, without wrappers.
        copies: Averages of its weights, without wrappers.
        example_inputs: What the model is called on.
        budget: Says the quantity, and of latency the runtime.
        size_wanted: From the present size to the size after the round.
        schedule: Says how the weights are recovered.
        images: What they are recovered on, if they are.
        options: For :func:`fec_fast.prune`.

    Returns:
        The round.

    Raises:
        FecError: As :func:`fec_fast.prune` and the recovery say.
    """
    with without_autocast([model, *copies]):
        present = network_size(model, example_inputs, budget)
        wanted = size_wanted(present)
        if wanted * ROUNDING >= present:
            return RoundPlan(None, [], present, present)
        amount: Any = wanted
        if budget.quantity != "latency_ms":
            # A share of the present size. Slightly less, so that rounding does not cost one more unit.
            amount = 1 - wanted / present - 1e-12
        recover: Any = None
        if schedule.recover == IMAGES:
            recover = [(batch,) for batch in calibration_batches(images, MOST_IMAGES, model)]  # the same for the copies
        elif schedule.recover == DATA_FREE:
            recover = DATA_FREE
        with keeps_widths():
            result = prune(model, example_inputs, budget=round_budget(budget, amount), recover=recover, **options)
        plan = result.plan
        if schedule.recover == BATCH_NORM:
            reestimate(result.model, images)
        values = [_changed(ModelIndex.of(model), plan, result.model)]
        for copy in copies:
            if schedule.recover is None:
                values.append({})
                continue
            index = ModelIndex.of(copy)
            pruned = pruned_copy(index, plan)
            if schedule.recover == BATCH_NORM:
                reestimate(pruned, images)
            else:
                batches = None if schedule.recover == DATA_FREE else recover
                compensate(copy, pruned, plan, batches, example_inputs=example_inputs)
            values.append(_changed(index, plan, pruned))
        return RoundPlan(plan, values, present, network_size(result.model, example_inputs, budget))


def _changed(index: ModelIndex, plan: Plan, pruned: nn.Module) -> dict[str, Tensor]:
    """The tensors of a pruned copy that differ from what surgery alone would leave."""
    changed = {}
    for name, tensor in named_tensors(pruned).items():
        kept = index.tensors[name].detach()
        for axis, indices in plan.keep.get(name, {}).items():
            kept = kept.index_select(int(axis), torch.tensor(indices, device=kept.device))
        if not torch.equal(kept, tensor.detach()):
            changed[name] = tensor.detach()
    return changed
